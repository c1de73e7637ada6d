"""Where values are between launches: buffers that are used again once nobody reads what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aicc.compiler.rows import program as rows
from aicc.compiler.rows.program import Op, Value
from aicc.targets.triton.lowering.chain import Place
from aicc.targets.triton.lowering.groups import Group
from aicc.targets.triton.plan import Argument

BYTES = {"*fp32": 4, "*fp16": 2, "*bf16": 2}


def stored_type(value: Value, readers: dict[Value, list[Op]], compute: str) -> str:
    """Triton's type of a value in memory: no more than its readers take in."""
    kinds = {type(op) for op in readers.get(value, [])}
    if kinds == {rows.Attend}:
        return "*fp16"
    return f"*{compute}" if kinds == {rows.Linear} else "*fp32"


@dataclass(slots=True)
class Slots:
    """Buffers of rows; those of selected rows are shorter.

    Attributes:
        type_of: Triton's type of a value in memory.
        new_buffer: Makes a buffer for so many bytes a row, of selected rows or of all.
        free: Buffers without a value, by bytes and selection.
        places: Of values that are needed.
        kept: Values that stay: the head of one tier reads what the body of another left.
    """

    type_of: Callable[[Value], str]
    new_buffer: Callable[[int, bool], int]
    free: dict[tuple[int, bool], list[int]] = field(default_factory=dict)
    places: dict[Value, Place] = field(default_factory=dict)
    kept: frozenset[Value] = frozenset()

    def enter(self, group: Group, stored: set[Value]) -> None:
        """Give what a group makes and others read a place."""
        for value in [op.output for op in group.ops() if op.output in stored and op.output not in self.places]:
            kind = self.type_of(value)
            free = self.free.get(self._key(value, kind))
            buffer = free.pop() if free else self.new_buffer(*self._key(value, kind))
            self.places[value] = Place(Argument(buffer), kind)

    def leave(self, later: Iterable[Group]) -> None:
        """Free what no later group reads."""
        needed = {v for group in later for v in group.read()} | self.kept
        for value in [v for v in self.places if v not in needed]:
            place = self.places.pop(value)
            self.free.setdefault(self._key(value, place.dtype), []).append(place.argument.buffer)

    @staticmethod
    def _key(value: Value, kind: str) -> tuple[int, bool]:
        return value.width * BYTES[kind], value.selected
