"""Operators that move elements: views of the same memory, and tensors that are fetched from other places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from aicc.targets.webgpu.lowering.tensors.builder import Builder, reshaped, whole
from aicc.targets.webgpu.lowering.tensors.pointwise import Attributes, known
from aicc.targets.webgpu.lowering.tensors.values import (
    Buffer,
    Kernel,
    Number,
    Place,
    Refused,
    Shape,
    Value,
    literal,
)


def numbers(value: Value | None, what: str) -> list[int]:
    """The values of a constant of whole numbers.

    Raises:
        Refused: It is computed on the device.
    """
    array = known(value)
    if array is None:
        raise Refused(f"its {what} are known only when it runs")
    return [int(number) for number in array.reshape(-1)]


def axes_of(a: Attributes, axes: Value | None) -> list[int] | None:
    """Axes from an input, or the attribute of older opsets; None if all."""
    if axes is not None:
        return numbers(axes, "axes")
    return list(a["axes"].as_ints()) if "axes" in a else None


def viewed(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """The same elements in another shape."""
    if isinstance(x, Number):
        return Number(tuple(shape), x.dtype, value=x.value, plain=True)
    return reshaped(b.stored(x), shape)


def _reshape(b: Builder, a: Attributes, x: Value, shape: Value) -> Value:
    sizes = numbers(shape, "sizes")
    if not a.get_int("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.size // max(prod(size for size in sizes if size != -1), 1)
    if prod(sizes) != x.size:
        raise Refused(f"it gives {x.size} values the shape {sizes}")
    return viewed(b, x, sizes)


def _flatten(b: Builder, a: Attributes, x: Value) -> Value:
    axis = a.get_int("axis", 1)
    rows = prod(x.shape[: axis + len(x.shape) if axis < 0 else axis])
    return viewed(b, x, (rows, x.size // max(rows, 1)))


def _squeeze(b: Builder, a: Attributes, x: Value, axes: Value | None = None) -> Value:
    chosen = axes_of(a, axes)
    rank = len(x.shape)
    gone = {d for d in range(rank) if x.shape[d] == 1} if chosen is None else {axis % rank for axis in chosen}
    return viewed(b, x, [size for d, size in enumerate(x.shape) if d not in gone])


def _unsqueeze(b: Builder, a: Attributes, x: Value, axes: Value | None = None) -> Value:
    chosen = axes_of(a, axes) or []
    rank = len(x.shape) + len(chosen)
    new, sizes = {axis % rank for axis in chosen}, iter(x.shape)
    return viewed(b, x, [1 if d in new else next(sizes) for d in range(rank)])


def transposed(b: Builder, x: Value, perm: Sequence[int]) -> Value:
    """Axis ``d`` of the result is axis ``perm[d]``."""
    x = b.computed(x)
    shape = tuple(x.shape[axis] for axis in perm)
    if [axis for axis in perm if x.shape[axis] != 1] == [axis for axis in range(len(perm)) if x.shape[axis] != 1]:
        return viewed(b, x, shape)  # only axes of one element have moved

    def at(kernel: Kernel, place: Place) -> str:
        coords = place.coords()
        return x.at(kernel, Place(kernel, x.shape, [coords[list(perm).index(axis)] for axis in range(len(perm))]))

    return b.map(shape, x.dtype, at, x)


def _transpose(b: Builder, a: Attributes, x: Value) -> Value:
    return transposed(b, x, list(a["perm"].as_ints()) if "perm" in a else list(range(len(x.shape)))[::-1])


def _expand(b: Builder, a: Attributes, x: Value, shape: Value) -> Value:
    sizes = np.broadcast_shapes(x.shape, tuple(numbers(shape, "sizes")))
    if isinstance(x, Number):
        return Number(sizes, x.dtype, value=x.value, plain=True)
    x = b.fetched(x)
    return b.map(sizes, x.dtype, lambda kernel, place: x.at(kernel, place.within(x.shape)), x)


def _tile(b: Builder, a: Attributes, x: Value, repeats: Value) -> Value:
    x = b.fetched(x)
    shape = tuple(size * times for size, times in zip(x.shape, numbers(repeats, "repeats"), strict=True))

    def at(kernel: Kernel, place: Place) -> str:
        coords = [kernel.let(f"{c} % {n}") if n > 1 else "0" for c, n in zip(place.coords(), x.shape, strict=True)]
        return x.at(kernel, Place(kernel, x.shape, coords))

    return b.map(shape, x.dtype, at, x)


def sliced(b: Builder, x: Value, starts: Sequence[int], steps: Sequence[int], shape: Shape) -> Value:
    """Elements at ``start + step * i`` along each axis."""
    if tuple(shape) == x.shape and all(step == 1 for step in steps):
        return x
    x = b.computed(x)

    def at(kernel: Kernel, place: Place) -> str:
        coords = []
        for coord, start, step, size in zip(place.coords(), starts, steps, x.shape, strict=True):
            term = coord if step == 1 else f"{coord} * ({step})"
            moved = coord if (start, step) == (0, 1) else kernel.let(f"{start} + {term}")
            coords.append("0" if size == 1 else moved)
        return x.at(kernel, Place(kernel, x.shape, coords))

    return b.map(tuple(shape), x.dtype, at, x)


def _slice(b: Builder, a: Attributes, x: Value, *bounds: Value | None) -> Value:
    given = dict(zip(("starts", "ends", "axes", "steps"), bounds, strict=False))
    begin, end = (
        numbers(given[name], name) if given.get(name) is not None else list(a[name].as_ints())
        for name in ("starts", "ends")
    )
    axes = axes_of(a, given.get("axes")) or list(range(len(begin)))
    stride = [1] * len(begin) if given.get("steps") is None else numbers(given["steps"], "steps")
    starts, steps, shape = [0] * len(x.shape), [1] * len(x.shape), list(x.shape)
    for axis, first, last, step in zip(axes, begin, end, stride, strict=True):
        # A negative end counts from the back, and one before the front has no form in Python but None.
        before = step < 0 and last < -x.shape[axis]
        taken = range(x.shape[axis])[slice(first, None if before else last, step)]
        starts[axis], steps[axis], shape[axis] = taken.start, taken.step, len(taken)
    return sliced(b, x, starts, steps, tuple(shape))


def _split(b: Builder, a: Attributes, x: Value, sizes: Value | None = None) -> list[Value]:
    axis = a.get_int("axis", 0) % len(x.shape)
    total = x.shape[axis]
    if sizes is not None:
        parts = numbers(sizes, "sizes")
    elif "split" in a:
        parts = list(a["split"].as_ints())
    else:
        count = a["num_outputs"].as_int() if "num_outputs" in a else a["outputs"].as_int()
        part = -(-total // count)
        parts = [min(part, total - start) for start in range(0, total, part)]
    x, found, start = b.fetched(x), [], 0
    for part in parts:
        starts = [start if d == axis else 0 for d in range(len(x.shape))]
        shape = tuple(part if d == axis else size for d, size in enumerate(x.shape))
        found.append(sliced(b, x, starts, [1] * len(x.shape), shape))
        start += part
    return found


def _concat(b: Builder, a: Attributes, *inputs: Value) -> Value:
    """Each input is computed into its part of the memory."""
    axis = a["axis"].as_int() % len(inputs[0].shape)
    shape = tuple(sum(v.shape[axis] for v in inputs) if d == axis else n for d, n in enumerate(inputs[0].shape))
    target, start = Buffer(4 * max(prod(shape), 1), inputs[0].scalar), 0
    for value in inputs:

        def where(place: Place, start: int = start) -> str:
            coords = list(place.coords())
            coords[axis] = place.kernel.let(f"{coords[axis]} + {start}")
            return Place(place.kernel, shape, coords).number()

        b.write(value, target, where)
        start += value.shape[axis]
    return whole(target, shape, inputs[0].dtype)


_OUTSIDE = {  # the place {i} of an axis of {n} elements that a place beside it stands for
    "edge": "clamp({i}, 0, {n} - 1)",
    "reflect": "({n} - 1 - abs({n} - 1 - abs({i})))",
    "wrap": "(({i} % {n}) + {n}) % {n}",
}


def _pad(
    b: Builder,
    a: Attributes,
    x: Value,
    pads: Value | None = None,
    value: Value | None = None,
    axes: Value | None = None,
) -> Value:
    amounts = list(a["pads"].as_ints()) if pads is None else numbers(pads, "amounts")
    chosen = [axis % len(x.shape) for axis in axes_of(a, axes) or range(len(x.shape))]
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for axis, first, last in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
        before[axis], after[axis] = first, last
    mode = a.get_string("mode", "constant")
    if mode == "reflect" and any(max(p, q) >= n for p, q, n in zip(before, after, x.shape, strict=True)):
        raise Refused("it reflects more than there is")
    if value is None:
        value = Number((), x.dtype, value=a.get_float("value", 0.0), plain=True)
    fill, x = b.fetched(value), b.fetched(x)
    shape = tuple(n + p + q for n, p, q in zip(x.shape, before, after, strict=True))

    def at(kernel: Kernel, place: Place) -> str:
        shifted = [kernel.let(f"{c} - ({p})") if p else c for c, p in zip(place.coords(), before, strict=True)]
        if mode != "constant":
            text = _OUTSIDE[mode]
            moved = [kernel.let(text.format(i=c, n=n)) for c, n in zip(shifted, x.shape, strict=True)]
            return x.at(kernel, Place(kernel, x.shape, moved))
        inside = [
            f"{c} >= 0 && {c} < {n}"
            for c, n, p, q in zip(shifted, x.shape, before, after, strict=True)
            if p > 0 or q > 0
        ]
        found = kernel.var(fill.at(kernel, Place(kernel, fill.shape, ["0"] * len(fill.shape))))
        with kernel.block(f"if ({' && '.join(inside) or 'true'})"):
            kernel.line(f"{found} = {x.at(kernel, Place(kernel, x.shape, shifted))};")
        return found

    return b.map(shape, x.dtype, at, x, fill)


def _wrapped(kernel: Kernel, index: str, size: int) -> str:
    """An index that may count from the back, kept inside."""
    return kernel.let(f"clamp(select({index}, {index} + {size}, {index} < 0), 0, {size - 1})")


def _gather(b: Builder, a: Attributes, x: Value, index: Value) -> Value:
    axis = a.get_int("axis", 0) % len(x.shape)
    x, index = b.fetched(x), b.fetched(index)
    rank = len(index.shape)

    def at(kernel: Kernel, place: Place) -> str:
        coords = list(place.coords())
        chosen = index.at(kernel, Place(kernel, index.shape, coords[axis : axis + rank]))
        coords[axis : axis + rank] = [_wrapped(kernel, chosen, x.shape[axis])]
        return x.at(kernel, Place(kernel, x.shape, coords))

    return b.map((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype, at, x, index)


def _gather_elements(b: Builder, a: Attributes, x: Value, index: Value) -> Value:
    axis = a.get_int("axis", 0) % len(x.shape)
    x, index = b.fetched(x), b.fetched(index)

    def at(kernel: Kernel, place: Place) -> str:
        coords = list(place.coords())
        coords[axis] = _wrapped(kernel, index.at(kernel, place), x.shape[axis])
        return x.at(kernel, Place(kernel, x.shape, coords))

    return b.map(index.shape, x.dtype, at, x, index)


def _gather_nd(b: Builder, a: Attributes, x: Value, index: Value) -> Value:
    x, index = b.fetched(x), b.fetched(index)
    batch, depth, rank = a.get_int("batch_dims", 0), index.shape[-1], len(index.shape) - 1

    def at(kernel: Kernel, place: Place) -> str:
        coords = list(place.coords())
        chosen = [
            _wrapped(kernel, index.at(kernel, Place(kernel, index.shape, [*coords[:rank], str(d)])), x.shape[batch + d])
            for d in range(depth)
        ]
        return x.at(kernel, Place(kernel, x.shape, [*coords[:batch], *chosen, *coords[rank:]]))

    return b.map((*index.shape[:-1], *x.shape[batch + depth :]), x.dtype, at, x, index)


def _one_hot(b: Builder, a: Attributes, index: Value, depth: Value, values: Value) -> Value:
    (count,) = numbers(depth, "depth")
    index, values = b.fetched(index), b.fetched(values)
    axis = a.get_int("axis", -1) % (len(index.shape) + 1)
    shape = (*index.shape[:axis], count, *index.shape[axis:])

    def at(kernel: Kernel, place: Place) -> str:
        coords = list(place.coords())
        wanted = coords.pop(axis)
        chosen = index.at(kernel, Place(kernel, index.shape, coords))
        hot = kernel.let(f"i32(i32({chosen}) == {wanted} || i32({chosen}) + {count} == {wanted})")
        return values.at(kernel, Place(kernel, values.shape, [hot]))

    return b.map(shape, values.dtype, at, index, values)


def _triangle(b: Builder, a: Attributes, x: Value, k: Value | None = None) -> Value:
    shift, x = 0 if k is None else numbers(k, "diagonal")[0], b.computed(x)
    sign = ">=" if a.get_int("upper", 1) else "<="

    def at(kernel: Kernel, place: Place) -> str:
        row, column = place.coords()[-2:]
        zero = literal(0, x.scalar)
        return f"select({zero}, {x.at(kernel, place)}, {column} - {row} {sign} {shift})"

    return b.map(x.shape, x.dtype, at, x)


def _depth_to_space(b: Builder, a: Attributes, x: Value) -> Value:
    n, c, h, w = x.shape
    size = a["blocksize"].as_int()
    inner = c // size**2
    if a.get_string("mode", "DCR") == "DCR":
        shape, perm = (n, size, size, inner, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, perm = (n, inner, size, size, h, w), (0, 1, 4, 2, 5, 3)
    return viewed(b, transposed(b, viewed(b, x, shape), perm), (n, inner, h * size, w * size))


def _space_to_depth(b: Builder, a: Attributes, x: Value) -> Value:
    n, c, h, w = x.shape
    size = a["blocksize"].as_int()
    parts = transposed(b, viewed(b, x, (n, c, h // size, size, w // size, size)), (0, 3, 5, 1, 2, 4))
    return viewed(b, parts, (n, c * size**2, h // size, w // size))


def _constant(b: Builder, a: Attributes) -> Value:
    (given,) = (attribute for name, attribute in a.items() if name.startswith("value"))
    if given.type == ir.AttributeType.TENSOR:
        return b.constant(given.as_tensor().numpy(), given.as_tensor().dtype)
    types = {ir.AttributeType.FLOAT: np.float32, ir.AttributeType.FLOATS: np.float32}
    types |= {ir.AttributeType.INT: np.int64, ir.AttributeType.INTS: np.int64}
    if given.type not in types:
        raise Refused(f"it is a constant of type {given.type.name}")
    return b.constant(np.asarray(given.value, types[given.type]))


def _filled(b: Builder, a: Attributes, shape: Value) -> Value:
    value = a["value"].as_tensor().numpy() if "value" in a else np.zeros(1, np.float32)
    return b.constant(np.full(numbers(shape, "sizes"), value.reshape(())))


OPERATORS: dict[str, Callable[..., Value | list[Value]]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
