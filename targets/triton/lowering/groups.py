"""Steps of the row program cut into launches, by how many rows they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aicc.compiler.rows import program as rows
from aicc.compiler.rows.fuse import Part, Step
from aicc.compiler.rows.program import Op, Value
from aicc.runtime.errors import UnsupportedError
from aicc.targets.triton.lowering.pack import matrix_form

_FUNCTIONS = (rows.Elementwise, rows.Logits)
_OF_HEADS = (rows.Rope, rows.Store)


@dataclass(slots=True)
class Group:
    """What one launch does.

    Attributes:
        kind: ``matvec``, ``matmul``, ``rows``, ``heads`` or ``attention``.
        parts: Products with what follows them; without products in the last three.
        norm: Of the input of ``matvec``.
        select: The same: it takes the row whose logits are wanted.
    """

    kind: str
    parts: list[Part]
    norm: rows.Norm | None = None
    select: rows.Select | None = None

    def ops(self) -> list[Op]:
        """All operations."""
        before: list[Op] = [op for op in (self.select, self.norm) if op is not None]
        return before + [op for part in self.parts for op in (*part.linears, *part.ops)]

    def made(self) -> set[Value]:
        """Values computed in it."""
        return {op.output for op in self.ops() if op.output is not None}

    def read(self) -> list[Value]:
        """Values it needs from others, each once."""
        made = self.made()
        return list(dict.fromkeys(v for op in self.ops() for v in op.inputs() if v not in made))

    @property
    def selected(self) -> bool:
        """Whether its rows are those whose logits are wanted."""
        op = self.ops()[-1]
        return op.output.selected if op.output is not None else op.inputs()[0].selected


def groups(steps: Iterable[Step], readers: dict[Value, list[Op]], most: int) -> list[Group]:
    """The launches for at most ``most`` rows, in order.

    Raises:
        UnsupportedError: There is no kernel for an operation; it is named.
    """
    found: list[Group] = []
    taken: dict[Value, tuple[rows.Norm, rows.Select | None]] = {}  # normalisations that products do themselves
    for step in steps:
        if step.kind == "ATTENTION":
            found.append(Group("attention", step.parts))
        elif step.kind == "MATRIX":
            found += _products(step, taken.get(step.parts[0].linears[0].x), most)
        else:
            ops = list(step.parts[0].ops)
            norm = ops[-1]
            if most == 1 and _goes_into_products(norm, readers):
                ops.pop()
                select = ops.pop() if len(ops) == 1 and isinstance(ops[0], rows.Select) else None
                taken[norm.output] = norm, select
            found += _rows(ops)
    return found


def _goes_into_products(op: Op, readers: dict[Value, list[Op]]) -> bool:
    return (
        isinstance(op, rows.Norm) and not (op.of_heads or op.layer or op.bias) and op.weight is not None
        and all(isinstance(reader, rows.Linear) for reader in readers[op.output])
    )  # fmt: skip


def _products(step: Step, taken: tuple[rows.Norm, rows.Select | None] | None, most: int) -> list[Group]:
    """Products by their forms, then what is done to whole heads."""
    launches: dict[object, Group] = {}
    tails: list[list[Op]] = []
    for part in step.parts:
        if len(part.linears) > 2:
            raise _refused(part.ops[0], "it combines more than two products")
        together, tail = _cut(part.ops, (lambda op: isinstance(op, rows.Norm)) if most == 1 else _is_of_heads)
        norm, select = taken or (None, None)
        new = Group("matvec" if most == 1 else "matmul", [], norm, select)
        key = (matrix_form(part.linears[0].matrix), len(part.linears))
        if any(matrix_form(linear.matrix) != key[0] for linear in part.linears):
            raise _refused(part.linears[1], "it is combined with a product whose weights have another form")
        launches.setdefault(key, new).parts.append(Part(part.linears, together))
        tails += [tail] if tail else []
    return list(launches.values()) + _heads(tails)


def _rows(ops: list[Op]) -> list[Group]:
    """What is done to whole rows, then what is done to heads."""
    whole, tail = _cut(ops, _is_of_heads)
    return ([Group("rows", [Part(ops=whole)])] if whole else []) + (_heads([tail]) if tail else [])


def _heads(tails: list[list[Op]]) -> list[Group]:
    by_width: dict[int, list[Part]] = {}
    for tail in tails:
        widths = {width for op in tail if (width := _piece(op))}
        if len(widths) != 1:
            raise _refused(tail[0], "what follows it works on heads of different widths")
        by_width.setdefault(widths.pop(), []).append(Part(ops=tail))
    return [Group("heads", parts) for parts in by_width.values()]


def piece_width(group: Group) -> int:
    """Columns of a head in a group of kind ``heads``."""
    return next(width for op in group.ops() if (width := _piece(op)))


def _piece(op: Op) -> int:
    if isinstance(op, rows.Norm):
        return op.size
    return op.head_dim if isinstance(op, rows.Rope) else op.heads.head_dim if isinstance(op, rows.Store) else 0


def _is_of_heads(op: Op) -> bool:
    return isinstance(op, _OF_HEADS) or (isinstance(op, rows.Norm) and op.of_heads)


def _cut(ops: list[Op], later: Callable[[Op], bool]) -> tuple[list[Op], list[Op]]:
    """Operations before and after: those that are ``later`` and all that read what they make."""
    before: list[Op] = []
    after: list[Op] = []
    made: set[Value | None] = set()
    for op in ops:
        if not isinstance(op, (*_FUNCTIONS, *_OF_HEADS, rows.Norm, rows.Embed, rows.Select)):
            raise _refused(op, f"the family has no kernel for {type(op).__name__.lower()}")
        if later(op) or any(v in made for v in op.inputs()):
            after.append(op)
            made.add(op.output)
        else:
            before.append(op)
    return before, after


def _refused(op: Op, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the triton family cannot run {op.node}: {reason}.",
        "Compile for another target, such as openvino:cpu or reference.",
    )
