"""Sums of products: matrices, convolutions, and what Einstein's notation says.

A thread computes a tile of results in registers, of rows that follow each other and columns that are spread, so that
threads beside each other read elements beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from aicc.targets.webgpu.lowering.tensors.builder import Builder
from aicc.targets.webgpu.lowering.tensors.movement import transposed, viewed
from aicc.targets.webgpu.lowering.tensors.pointwise import FLOATS, WIDE, Attributes, only
from aicc.targets.webgpu.lowering.tensors.values import Kernel, Place, Refused, Root, Shape, Store, Value, literal
from aicc.targets.webgpu.lowering.tensors.windows import Window

_TILE = 4  # results of a thread along each side
_ENOUGH = 2048  # threads that keep a device busy; fewer make smaller tiles


class _Tiles:
    """How results ``[batches, rows, columns]`` are shared out among threads."""

    def __init__(self, batches: int, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.high = min(_TILE, rows)
        self.wide = _TILE if batches * rows * columns >= _ENOUGH * self.high * _TILE else 1
        self.down, self.across = -(-rows // self.high), -(-columns // self.wide)
        self.threads = batches * self.down * self.across

    def places(self, kernel: Kernel, row: str, column: str) -> tuple[list[str], list[str]]:
        """Names of a thread's rows and columns; those that are too many are the last ones again."""
        rows = [kernel.let(f"{row} * {self.high} + {i}") if self.rows > 1 else "0" for i in range(self.high)]
        columns = [kernel.let(f"{column} + {j * self.across}") if j else column for j in range(self.wide)]
        if self.down * self.high > self.rows:
            rows = [kernel.let(f"min({name}, {self.rows - 1})") for name in rows]
        if self.across * self.wide > self.columns:
            columns = [kernel.let(f"min({name}, {self.columns - 1})") for name in columns]
        return rows, columns

    def sums(self, kernel: Kernel, scalar: str) -> list[list[str]]:
        """Names of the sums."""
        return [[kernel.var(literal(0, scalar)) for _ in range(self.wide)] for _ in range(self.high)]


def _add(kernel: Kernel, sums: list[list[str]], left: Sequence[str], right: Sequence[str]) -> None:
    for names, x in zip(sums, left, strict=True):
        for name, y in zip(names, right, strict=True):
            kernel.line(f"{name} += {x} * {y};")


class Product(Root):
    """``[..., M, K]`` by ``[..., K, N]``, their batches broadcast."""

    def __init__(self, left: Value, right: Value) -> None:
        self.left, self.right = left, right
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        super().__init__((*batch, left.shape[-2], right.shape[-1]), left.dtype, left, right)

    def write(self, kernel: Kernel, store: Store) -> None:
        """A tile of sums over all of K."""
        *batch, m, n = self.shape
        inner = self.left.shape[-1]
        tiles = _Tiles(prod(batch), m, n)
        thread = kernel.threads(tiles.threads)
        *outer, row, column = Place(kernel, (*batch, tiles.down, tiles.across), number=thread).coords()
        rows, columns = tiles.places(kernel, row, column)
        sums = tiles.sums(kernel, self.scalar)
        with kernel.loop("k", inner) as k:
            left = [
                self.left.at(kernel, Place(kernel, (*batch, m, inner), [*outer, i, k]).within(self.left.shape))
                for i in rows
            ]
            right = [
                self.right.at(kernel, Place(kernel, (*batch, inner, n), [*outer, k, j]).within(self.right.shape))
                for j in columns
            ]
            _add(kernel, sums, left, right)
        for i, names in zip(rows, sums, strict=True):
            for j, name in zip(columns, names, strict=True):
                kernel.given[self] = name
                store(Place(kernel, self.shape, [*outer, i, j]))


class Convolution(Root):
    """``[N, C, ...]`` by ``[M, C / groups, ...]``."""

    def __init__(self, x: Value, weight: Value, window: Window, groups: int) -> None:
        self.x, self.weight, self.window, self.groups = x, weight, window, groups
        super().__init__((x.shape[0], weight.shape[0], *window.sizes), x.dtype, x, weight)

    def write(self, kernel: Kernel, store: Store) -> None:
        """A tile of output channels of one group by pixels."""
        made, taken = self.weight.shape[0] // self.groups, self.weight.shape[1]
        pixels, window = prod(self.window.sizes), self.window
        tiles = _Tiles(self.x.shape[0] * self.groups, made, pixels)
        thread = kernel.threads(tiles.threads)
        shape = (self.x.shape[0], self.groups, tiles.down, tiles.across)
        image, group, row, column = Place(kernel, shape, number=thread).coords()
        rows, columns = tiles.places(kernel, row, column)
        first = kernel.let(f"{group} * {made}") if self.groups > 1 else "0"
        channels = [i if first == "0" else kernel.let(f"{first} + {i}") for i in rows]
        outputs = [Place(kernel, window.sizes, number=j).coords() for j in columns]
        origins = [window.origin(kernel, coords) for coords in outputs]
        sums = tiles.sums(kernel, self.scalar)
        with window.loops(kernel) as offsets:
            reached = [window.reach(kernel, origin, offsets) for origin in origins]
            with kernel.loop("c", taken) as c:
                channel = kernel.let(f"{group} * {taken} + {c}") if self.groups > 1 else c
                values = []
                for coords, inside in reached:
                    value = self.x.at(kernel, Place(kernel, self.x.shape, [image, channel, *coords]))
                    values.append(kernel.let(f"select(0.0, {value}, {inside})") if inside else value)
                weights = [self.weight.at(kernel, Place(kernel, self.weight.shape, [i, c, *offsets])) for i in channels]
                _add(kernel, sums, weights, values)
        for channel, names in zip(channels, sums, strict=True):
            for coords, name in zip(outputs, names, strict=True):
                kernel.given[self] = name
                store(Place(kernel, self.shape, [image, channel, *coords]))


class TransposedConvolution(Root):
    """``[N, C, ...]`` by ``[C, M / groups, ...]``: each result gathers the inputs that reach it."""

    def __init__(self, x: Value, weight: Value, window: Window, sizes: Shape, groups: int) -> None:
        self.x, self.weight, self.window, self.groups = x, weight, window, groups
        super().__init__((x.shape[0], weight.shape[1] * groups, *sizes), x.dtype, x, weight)

    def write(self, kernel: Kernel, store: Store) -> None:
        """One sum."""
        made, taken, window = self.weight.shape[1], self.x.shape[1] // self.groups, self.window
        place = Place(kernel, self.shape, number=kernel.threads(self.size))
        image, channel, *output = place.coords()
        group = kernel.let(f"{channel} / {made}") if self.groups > 1 else "0"
        within = kernel.let(f"{channel} % {made}") if self.groups > 1 else channel
        total = kernel.var("0.0")
        with window.loops(kernel) as offsets:
            inside, coords = [], []
            for o, k, step, dilation, before, size in zip(
                output, offsets, window.strides, window.dilations, window.before, self.x.shape[2:], strict=True
            ):
                moved = kernel.let(f"{o} + {before} - {k} * {dilation}")
                coords.append(kernel.let(f"{moved} / {step}"))
                inside.append(f"{moved} >= 0 && {moved} % {step} == 0 && {coords[-1]} < {size}")
            with kernel.block(f"if ({' && '.join(inside)})"), kernel.loop("c", taken) as c:
                source = kernel.let(f"{group} * {taken} + {c}") if self.groups > 1 else c
                x = self.x.at(kernel, Place(kernel, self.x.shape, [image, source, *coords]))
                weight = self.weight.at(kernel, Place(kernel, self.weight.shape, [source, within, *offsets]))
                kernel.line(f"{total} += {x} * {weight};")
        kernel.given[self] = total
        store(place)


class Contraction(Root):
    """Products of elements with some axes in common, summed over those that the result lacks."""

    def __init__(self, inputs: Sequence[Value], terms: Sequence[str], result: str, sizes: dict[str, int]) -> None:
        self.inputs, self.terms, self.result, self.sizes = inputs, terms, result, sizes
        super().__init__(tuple(sizes[letter] for letter in result), inputs[0].dtype, *inputs)

    def write(self, kernel: Kernel, store: Store) -> None:
        """One sum."""
        place = Place(kernel, self.shape, number=kernel.threads(self.size))
        names = dict(zip(self.result, place.coords(), strict=True))
        summed = [letter for letter in self.sizes if letter not in self.result]
        size = prod(self.sizes[letter] for letter in summed)
        total = kernel.var("0.0")
        with kernel.loop("k", size) as k:
            parts = Place(kernel, tuple(self.sizes[letter] for letter in summed), number=k).coords()
            names |= dict(zip(summed, parts, strict=True))
            factors = [
                value.at(kernel, Place(kernel, value.shape, [names[letter] for letter in term]))
                for value, term in zip(self.inputs, self.terms, strict=True)
            ]
            kernel.line(f"{total} += {' * '.join(factors)};")
        kernel.given[self] = total
        store(place)


def _product(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    only(WIDE, x, y)
    x, y = b.fetched(x), b.fetched(y)
    vectors = len(x.shape) == 1, len(y.shape) == 1
    left = viewed(b, x, (1, *x.shape)) if vectors[0] else x
    right = viewed(b, y, (*y.shape, 1)) if vectors[1] else y
    made = Product(left, right)
    if not any(vectors):
        return made
    shape = [*made.shape[:-2], *([] if vectors[0] else [made.shape[-2]]), *([] if vectors[1] else [made.shape[-1]])]
    return viewed(b, made, tuple(shape))


def _integer_product(
    b: Builder, a: Attributes, x: Value, y: Value, x_zero: Value | None = None, y_zero: Value | None = None
) -> Value:
    if x_zero is not None and x_zero.size > 1:
        x_zero = viewed(b, x_zero, (*x_zero.shape, 1) if len(x_zero.shape) == 1 else x_zero.shape)
    return _product(b, a, _above(b, x, x_zero), _above(b, y, y_zero))


def _above(b: Builder, x: Value, zero: Value | None) -> Value:
    """Integers above a zero point, as int32."""
    inputs = (x,) if zero is None else (x, zero)
    return b.elementwise(ir.DataType.INT32, lambda *names: " - ".join(names), *inputs, plain=True)


def _gemm(b: Builder, a: Attributes, x: Value, y: Value, bias: Value | None = None) -> Value:
    only(FLOATS, x, y)
    x, y = b.fetched(x), b.fetched(y)
    left = transposed(b, x, (1, 0)) if a.get_int("transA", 0) else x
    right = transposed(b, y, (1, 0)) if a.get_int("transB", 0) else y
    made: Value = Product(left, right)
    alpha, beta = (literal(a.get_float(name, 1.0), "f32") for name in ("alpha", "beta"))
    if alpha != "1.0f":
        made = b.elementwise(made.dtype, lambda p: f"{p} * {alpha}", made)
    if bias is None:
        return made
    return b.elementwise(made.dtype, lambda p, q: f"{p} + {q}" + (f" * {beta}" if beta != "1.0f" else ""), made, bias)


def _biased(b: Builder, made: Value, bias: Value | None) -> Value:
    """With a number added for each channel."""
    if bias is None:
        return made
    channels = viewed(b, bias, (bias.size, *[1] * (len(made.shape) - 2)))
    return b.elementwise(made.dtype, lambda p, q: f"{p} + {q}", made, channels)


def _convolve(b: Builder, a: Attributes, x: Value, weight: Value, bias: Value | None = None) -> Value:
    only(FLOATS, x, weight)
    x, weight, groups = b.fetched(x), b.fetched(weight), a.get_int("group", 1)
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise Refused("its groups are not those of its weights")
    return _biased(b, Convolution(x, weight, Window.of(a, x.shape[2:], weight.shape[2:]), groups), bias)


def _convolve_transposed(b: Builder, a: Attributes, x: Value, weight: Value, bias: Value | None = None) -> Value:
    only(FLOATS, x, weight)
    if "output_shape" in a:
        raise Refused("it is given its output's sizes")
    x, weight = b.fetched(x), b.fetched(weight)
    rank = len(x.shape) - 2
    window = Window.of(a, x.shape[2:], weight.shape[2:])
    pads = list(a.get_ints("pads", [0] * 2 * rank))
    more = a.get_ints("output_padding", [0] * rank)
    mode = a.get_string("auto_pad", "NOTSET")
    sizes, before = [], []
    for d, size in enumerate(x.shape[2:]):
        full = (size - 1) * window.strides[d] + (window.kernel[d] - 1) * window.dilations[d] + 1 + more[d]
        if mode.startswith("SAME"):
            total = max(full - size * window.strides[d], 0)
            before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
            sizes.append(full - total)
        else:
            before.append(pads[d])
            sizes.append(full - pads[d] - pads[d + rank])
    window = Window(window.kernel, window.strides, window.dilations, tuple(before), (), ())
    return _biased(b, TransposedConvolution(x, weight, window, tuple(sizes), a.get_int("group", 1)), bias)


def _einsum(b: Builder, a: Attributes, *inputs: Value) -> Value:
    only(FLOATS, *inputs)
    left, arrow, result = a["equation"].as_string().replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or not arrow or any(len(set(term)) != len(term) for term in terms):
        raise Refused("its equation has an ellipsis, a diagonal or no result")
    inputs = tuple(b.fetched(value) for value in inputs)
    sizes: dict[str, int] = {}
    for term, value in zip(terms, inputs, strict=True):
        for letter, size in zip(term, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise Refused(f"its axes {letter} have different sizes")
    return Contraction(inputs, terms, result, sizes)


OPERATORS: dict[str, Callable[..., Value]] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_transposed,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _integer_product,
}
