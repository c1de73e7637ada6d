"""Operations of a launch as constant programs (``kernels/columns.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aicc.compiler.rows import program as rows
from aicc.compiler.rows.program import Op, Value, Vector
from aicc.targets.triton.lowering.pack import Order, Packer
from aicc.targets.triton.plan import LOGITS, Argument


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is between launches: a buffer and Triton's type of it."""

    argument: Argument
    dtype: str


@dataclass(slots=True)
class Context:
    """What the programs of all launches refer to.

    Attributes:
        packer: Constants.
        orders: Of columns, where it is not the graph's.
        place: Where a value is.
        cache: Where a layer's keys (True) or values are.
        page: Tokens of a page.
        table: Pages of a sequence.
    """

    packer: Packer
    orders: dict[Value, Order]
    place: Callable[[Value], Place]
    cache: Callable[[int, bool], Argument]
    page: int
    table: int


@dataclass(slots=True)
class Pointers:
    """The tuple of addresses that the programs of a launch share."""

    places: list[Place] = field(default_factory=list)

    def number(self, argument: Argument, dtype: str) -> int:
        """Of an address in the tuple."""
        place = Place(argument, dtype)
        if place not in self.places:
            self.places.append(place)
        return self.places.index(place)


@dataclass(slots=True)
class Chain:
    """One program being written."""

    context: Context
    pointers: Pointers
    ops: list[tuple[Any, ...]] = field(default_factory=list)
    values: dict[object, int] = field(default_factory=dict)

    def start(self, given: Iterable[Value]) -> None:
        """Values that the kernel computed before."""
        for value in given:
            self.values[value] = len(self.values)

    def write(self, ops: list[Op], stored: set[Value]) -> tuple[tuple[Any, ...], ...]:
        """The program of some operations, which also stores what others read."""
        for value in [v for v in self.values if v in stored]:
            self._store(value)
        for op in ops:
            self._operation(op)
            if op.output is not None and op.output in stored:
                self._store(op.output)
        return tuple(self.ops)

    def _add(self, key: object, *op: Any) -> int:
        self.ops.append(op)
        self.values[key] = len(self.values)
        return self.values[key]

    def _operand(self, operand: Value | Vector | float, order: Order = None) -> int:
        if operand in self.values:
            return self.values[operand]
        if isinstance(operand, Vector):
            pointer = self.pointers.number(self.context.packer.vector(operand, order), "*fp32")
            return self._add(operand, "vector", pointer, operand.size)
        if isinstance(operand, Value):
            place = self.context.place(operand)
            return self._add(operand, "load", self.pointers.number(place.argument, place.dtype), operand.width)
        return self._add(operand, "number", float(operand))

    def _store(self, value: Value) -> None:
        place = self.context.place(value)
        pointer = self.pointers.number(place.argument, place.dtype)
        self.ops.append(("store", self.values[value], pointer, value.width))

    def _operation(self, op: Op) -> None:
        order = self.context.orders.get(op.output)
        if isinstance(op, rows.Elementwise):
            operands = [self._operand(o, order) for o in op.operands]
            self._add(op.output, op.function, *operands)
        elif isinstance(op, rows.Norm):
            self._norm(op, order)
        elif isinstance(op, rows.Rope):
            pointer = self.pointers.number(self.context.packer.angles(op.angles), "*fp32")
            x = self._operand(op.x)
            self._add(op.output, "Rope", x, pointer, op.head_dim, op.rotary // 2, op.angles.positions)
        elif isinstance(op, rows.Store):
            pointer = self.pointers.number(self.context.cache(op.layer, op.keys), "*fp16")
            heads, x = op.heads, self._operand(op.x)
            facts = (heads.kv_heads, heads.head_dim, self.context.page, self.context.table)
            self.ops.append(("cache", x, pointer, *facts))
        elif isinstance(op, rows.Select):
            place = self.context.place(op.x)
            self._add(op.output, "wanted", self.pointers.number(place.argument, place.dtype), op.x.width)
        elif isinstance(op, rows.Embed):
            self._embed(op)
        else:
            pointer = self.pointers.number(Argument(LOGITS), "*fp32")
            x = self._operand(op.x)
            self.ops.append(("store", x, pointer, op.x.width))

    def _norm(self, op: rows.Norm, order: Order) -> None:
        x = self._operand(op.x)
        weight, bias = (-1 if v is None else self._operand(v, order) for v in (op.weight, op.bias))
        self._add(op.output, "Norm", x, op.size, op.layer, weight, bias, op.epsilon)

    def _embed(self, op: rows.Embed) -> None:
        packed = self.context.packer.matrices([op.table], [None])
        form = packed.form
        values = self.pointers.number(packed.weight, "*" + form.dtype)
        scales = self.pointers.number(packed.scales, "*" + (form.scales or form.dtype))
        minima = self.pointers.number(packed.minima, "*" + form.scales) if form.minima else -1
        facts = (op.table.columns, form.bits, form.zero, form.group, op.input is None)
        self._add(op.output, "embed", values, scales, minima, *facts)
