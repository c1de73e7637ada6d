"""Operators that look along some axes: reductions, softmax and normalisations.

The elements that are looked at together are a row. Long rows have a workgroup each, whose threads take every 64th
element and join their results in workgroup memory; short ones have a thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import prod

import onnx_ir as ir

from aicc.targets.webgpu.lowering.tensors.builder import Builder
from aicc.targets.webgpu.lowering.tensors.movement import axes_of, numbers, viewed
from aicc.targets.webgpu.lowering.tensors.pointwise import FLOATS, NUMBERS, WIDE, Attributes, only
from aicc.targets.webgpu.lowering.tensors.values import GROUP, Kernel, Place, Refused, Root, Store, Value, literal

_LONG = 64  # elements of a row that a workgroup is worth
_JOINS = {"sum": "{x} + {y}", "max": "max({x}, {y})", "min": "min({x}, {y})", "product": "{x} * {y}"}
_SHARED = "var<workgroup> shared_{kind}: array<{kind}, {n}>;"
_JOINED = """fn joined_{how}(lane: u32, part: {kind}) -> {kind} {{
  workgroupBarrier();
  shared_{kind}[lane] = part;
  for (var width = {half}u; width > 0u; width /= 2u) {{
    workgroupBarrier();
    if (lane < width) {{
      shared_{kind}[lane] = {joined};
    }}
  }}
  workgroupBarrier();
  return shared_{kind}[0];
}}"""


class Rows(Root):
    """What looks along axes of a tensor.

    Args:
        x: The tensor.
        axes: The axes, not negative.
        keep: Whether they stay as axes of one element; None if the result has the tensor's own shape.
    """

    def __init__(self, x: Value, axes: Sequence[int], keep: bool | None, dtype: ir.DataType | None = None) -> None:
        self.x, self.axes = x, sorted(axes)
        self.kept = [d for d in range(len(x.shape)) if d not in self.axes]
        self.length = prod(x.shape[d] for d in self.axes)
        self.count = prod(x.shape[d] for d in self.kept)
        sizes = [1 if d in self.axes and keep is not None else n for d, n in enumerate(x.shape)]
        shape = sizes if keep is not False else [x.shape[d] for d in self.kept]
        super().__init__(tuple(shape), dtype or x.dtype, x)
        self.long = self.length >= _LONG

    def begin(self, kernel: Kernel) -> list[str]:
        """Coordinates of this row among the axes that are kept."""
        number = kernel.rows(self.count) if self.long else kernel.threads(self.count)
        return list(Place(kernel, tuple(self.x.shape[d] for d in self.kept), number=number).coords())

    def place(self, kernel: Kernel, row: Sequence[str], k: str) -> Place:
        """Element ``k`` of a row in the tensor."""
        along = Place(kernel, tuple(self.x.shape[d] for d in self.axes), number=k).coords()
        named = dict(zip(self.kept, row, strict=True)) | dict(zip(self.axes, along, strict=True))
        return Place(kernel, self.x.shape, [named[d] for d in range(len(self.x.shape))])

    def loop(self, kernel: Kernel) -> AbstractContextManager[str]:
        """Over the elements of a row that are this thread's."""
        if self.long:
            return kernel.loop("k", self.length, "i32(lane)", GROUP)
        return kernel.loop("k", self.length)

    def joined(self, kernel: Kernel, how: str, start: str, part: Callable[[str], str], row: Sequence[str]) -> str:
        """One number from all elements of a row: a name that every thread of it has.

        Args:
            kernel: What is being written.
            how: One of ``_JOINS``.
            start: The number for a row of nothing.
            part: WGSL of what an element gives, from its name.
            row: See :meth:`begin`.
        """
        total, join = kernel.var(start), _JOINS[how]
        with self.loop(kernel) as k:
            element = kernel.let(part(self.x.at(kernel, self.place(kernel, row, k))))
            kernel.line(f"{total} = {join.format(x=total, y=element)};")
        if not self.long:
            return total
        kind = self.x.scalar
        here, there = f"shared_{kind}[lane]", f"shared_{kind}[lane + width]"
        kernel.function(_SHARED.format(kind=kind, n=GROUP))
        kernel.function(_JOINED.format(how=how, kind=kind, half=GROUP // 2, joined=join.format(x=here, y=there)))
        return kernel.let(f"joined_{how}(lane, {total})")

    def store(self, kernel: Kernel, row: Sequence[str], result: str, store: Store) -> None:
        """Store the one result of a row."""
        named = dict(zip(self.kept, row, strict=True))
        if len(self.shape) == len(self.x.shape):
            coords = [named.get(d, "0") for d in range(len(self.shape))]
        else:
            coords = list(row)
        kernel.given[self] = result
        if not self.long:
            store(Place(kernel, self.shape, coords))
            return
        with kernel.block("if (lane == 0u)"):
            store(Place(kernel, self.shape, coords))


class Reduction(Rows):
    """One number of each row: what its elements give, joined, and what becomes of that."""

    def __init__(
        self, x: Value, axes: Sequence[int], keep: bool, how: str, part: str = "{x}", finish: str = "{x}"
    ) -> None:
        super().__init__(x, axes, keep)
        self.how, self.part, self.finish = how, part, finish

    def write(self, kernel: Kernel, store: Store) -> None:
        """Join and finish."""
        row = self.begin(kernel)
        total = self.joined(kernel, self.how, _start(self.how, self.x), lambda x: self.part.format(x=x), row)
        self.store(kernel, row, kernel.let(self.finish.format(x=total, n=f"{self.length}.0")), store)


class LogSumExp(Rows):
    """The logarithm of a sum of exponentials."""

    def write(self, kernel: Kernel, store: Store) -> None:
        """With the largest subtracted."""
        row = self.begin(kernel)
        top = self.joined(kernel, "max", _start("max", self.x), str, row)
        total = self.joined(kernel, "sum", "0.0", lambda x: f"exp({x} - {top})", row)
        self.store(kernel, row, kernel.let(f"{top} + log({total})"), store)


class Extreme(Rows):
    """The place of the largest or smallest of each row, which a thread looks through."""

    def __init__(self, x: Value, axis: int, keep: bool, sign: str) -> None:
        super().__init__(x, [axis], keep, ir.DataType.INT64)
        self.long, self.sign = False, sign

    def write(self, kernel: Kernel, store: Store) -> None:
        """Keep the best so far."""
        row = self.begin(kernel)
        place, best = kernel.var("0"), kernel.var(self.x.at(kernel, self.place(kernel, row, "0")))
        with kernel.loop("k", self.length) as k:
            element = self.x.at(kernel, self.place(kernel, row, k))
            with kernel.block(f"if ({element} {self.sign} {best})"):
                kernel.line(f"{place} = {k};")
                kernel.line(f"{best} = {element};")
        self.store(kernel, row, place, store)


class Spread(Rows):
    """Each element of a row, changed by what the whole row gave: ``{x}`` by names that ``prepare`` returns."""

    def __init__(self, x: Value, axes: Sequence[int], prepare: Callable[..., dict[str, str]], change: str) -> None:
        super().__init__(x, axes, None)
        self.prepare, self.change = prepare, change

    def write(self, kernel: Kernel, store: Store) -> None:
        """Look at the row, and at each element again."""
        row = self.begin(kernel)
        names = self.prepare(self, kernel, row)
        with self.loop(kernel) as k:
            place = self.place(kernel, row, k)
            kernel.given[self] = kernel.let(self.change.format(x=self.x.at(kernel, place), **names))
            store(place)


class Running(Rows):
    """The sum of all elements so far, which a thread counts."""

    def __init__(self, x: Value, axis: int, exclusive: bool, backwards: bool) -> None:
        super().__init__(x, [axis], None)
        self.long, self.exclusive, self.backwards = False, exclusive, backwards

    def write(self, kernel: Kernel, store: Store) -> None:
        """Add and store."""
        row = self.begin(kernel)
        total = kernel.var(literal(0, self.x.scalar))
        with kernel.loop("k", self.length) as k:
            place = self.place(kernel, row, kernel.let(f"{self.length - 1} - {k}") if self.backwards else k)
            if self.exclusive:
                kernel.given[self] = kernel.let(f"{total} + {literal(0, self.x.scalar)}")
            kernel.line(f"{total} += {self.x.at(kernel, place)};")
            if not self.exclusive:
                kernel.given[self] = total
            store(place)


def _start(how: str, x: Value) -> str:
    """What joining nothing gives, or the nearest number there is."""
    if how in ("max", "min"):
        most = {"f32": "3.4028234e38f", "i32": "2147483647", "u32": "4294967295u"}[x.scalar]
        least = {"f32": f"(-{most})", "i32": f"i32(-{most} - 1)", "u32": "0u"}[x.scalar]
        return least if how == "max" else most
    return literal(how == "product", x.scalar)


def _reduction(how: str, part: str = "{x}", finish: str = "{x}") -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value, axes: Value | None = None) -> Value:
        only(NUMBERS if how in ("max", "min") else WIDE if part == finish else FLOATS, x)
        chosen = _chosen(a, x, axes)
        if chosen is None:
            return x
        _refuse_nothing(x)
        return Reduction(b.computed(x), chosen, bool(a.get_int("keepdims", 1)), how, part, finish)

    return lower


def _chosen(a: Attributes, x: Value, axes: Value | None) -> list[int] | None:
    """The axes of a reduction; None if nothing is to be reduced."""
    chosen = axes_of(a, axes)
    if not chosen and a.get_int("noop_with_empty_axes", 0):
        return None
    return [axis % len(x.shape) for axis in chosen or range(len(x.shape))]


def _refuse_nothing(x: Value) -> None:
    if not x.size:
        raise Refused("it reduces nothing")


def _log_sum_exp(b: Builder, a: Attributes, x: Value, axes: Value | None = None) -> Value:
    only(FLOATS, x)
    _refuse_nothing(x)
    chosen = _chosen(a, x, axes)
    return x if chosen is None else LogSumExp(b.computed(x), chosen, bool(a.get_int("keepdims", 1)))


def _global(how: str, part: str, finish: str) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value) -> Value:
        only(FLOATS, x)
        return Reduction(b.computed(x), range(2, len(x.shape)), True, how, part, finish)

    return lower


def _extreme(sign: str) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value) -> Value:
        _refuse_nothing(x)
        sign_here = sign + "=" * a.get_int("select_last_index", 0)
        axis = a.get_int("axis", 0) % len(x.shape)
        return Extreme(b.computed(x), axis, bool(a.get_int("keepdims", 1)), sign_here)

    return lower


def _exponentials(rows: Rows, kernel: Kernel, row: Sequence[str]) -> dict[str, str]:
    top = rows.joined(kernel, "max", _start("max", rows.x), str, row)
    return {"top": top, "total": rows.joined(kernel, "sum", "0.0", lambda x: f"exp({x} - {top})", row)}


def _softmax(change: str) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value) -> Value:
        only(FLOATS, x)
        return Spread(b.computed(x), [a.get_int("axis", -1) % len(x.shape)], _exponentials, change)

    return lower


def _moments(epsilon: float) -> Callable[..., dict[str, str]]:
    def prepare(rows: Rows, kernel: Kernel, row: Sequence[str]) -> dict[str, str]:
        share = literal(1 / rows.length, "f32")
        total = rows.joined(kernel, "sum", "0.0", str, row)
        mean = kernel.let(f"{total} * {share}")
        squares = rows.joined(kernel, "sum", "0.0", lambda x: f"({x} - {mean}) * ({x} - {mean})", row)
        return {"mean": mean, "factor": kernel.let(f"1.0 / sqrt({squares} * {share} + {literal(epsilon, 'f32')})")}

    return prepare


def _scaled(b: Builder, made: Value, scale: Value | None, bias: Value | None) -> Value:
    if scale is not None:
        made = b.elementwise(made.dtype, lambda p, q: f"{p} * {q}", made, scale)
    return made if bias is None else b.elementwise(made.dtype, lambda p, q: f"{p} + {q}", made, bias)


def _layer_normalise(b: Builder, a: Attributes, x: Value, scale: Value, bias: Value | None = None) -> Value:
    only(FLOATS, x)
    axes = range(a.get_int("axis", -1) % len(x.shape), len(x.shape))
    made = Spread(b.computed(x), axes, _moments(a.get_float("epsilon", 1e-5)), "({x} - {mean}) * {factor}")
    return _scaled(b, made, scale, bias)


def _instance_normalise(b: Builder, a: Attributes, x: Value, scale: Value, bias: Value) -> Value:
    only(FLOATS, x)
    rank, epsilon = len(x.shape), a.get_float("epsilon", 1e-5)
    made = Spread(b.computed(x), range(2, rank), _moments(epsilon), "({x} - {mean}) * {factor}")
    return _scaled(b, made, *(viewed(b, v, (v.size, *[1] * (rank - 2))) for v in (scale, bias)))


def _power_normalise(b: Builder, a: Attributes, x: Value) -> Value:
    only(FLOATS, x)
    part, finish = {1: ("abs({x})", "{x}"), 2: ("{x} * {x}", "sqrt({x})")}[a.get_int("p", 2)]

    def prepare(rows: Rows, kernel: Kernel, row: Sequence[str]) -> dict[str, str]:
        total = rows.joined(kernel, "sum", "0.0", lambda x: part.format(x=x), row)
        return {"length": kernel.let(finish.format(x=total))}

    change = "select({x} / {length}, 0.0, {length} == 0.0)"
    return Spread(b.computed(x), [a.get_int("axis", -1) % len(x.shape)], prepare, change)


def _running(b: Builder, a: Attributes, x: Value, axis: Value) -> Value:
    only(WIDE, x)
    along = numbers(axis, "axis")[0] % len(x.shape)
    return Running(b.computed(x), along, bool(a.get_int("exclusive", 0)), bool(a.get_int("reverse", 0)))


OPERATORS: dict[str, Callable[..., Value]] = {
    "ArgMax": _extreme(">"),
    "ArgMin": _extreme("<"),
    "CumSum": _running,
    "GlobalAveragePool": _global("sum", "{x}", "{x} / {n}"),
    "GlobalMaxPool": _global("max", "{x}", "{x}"),
    "InstanceNormalization": _instance_normalise,
    "LayerNormalization": _layer_normalise,
    "LogSoftmax": _softmax("({x} - {top}) - log({total})"),
    "LpNormalization": _power_normalise,
    "ReduceL1": _reduction("sum", "abs({x})"),
    "ReduceL2": _reduction("sum", "{x} * {x}", "sqrt({x})"),
    "ReduceLogSum": _reduction("sum", "{x}", "log({x})"),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduction("sum", "{x}", "{x} / {n}"),
    "ReduceMin": _reduction("min"),
    "ReduceProd": _reduction("product"),
    "ReduceSum": _reduction("sum"),
    "ReduceSumSquare": _reduction("sum", "{x} * {x}"),
    "Softmax": _softmax("exp({x} - {top}) / {total}"),
}
