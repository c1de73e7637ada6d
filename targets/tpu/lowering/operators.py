"""ONNX operators in jax.numpy: one table, operator → function of its attributes and inputs.

An input is a numpy array where its value is known while compiling and a traced one otherwise; a function that
needs a value asks :func:`known` for it. Operators that ONNX defines by others are not here: those definitions are
taken (:mod:`aicc.compiler.passes.decompose_functions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

Array = Any  # numpy's or a traced one of jax
Attributes = Mapping[str, ir.Attr]


class Refused(Exception):
    """A node that cannot be computed; the text says why."""


def known(value: Array, what: str) -> np.ndarray:
    """A value that has to be known while compiling.

    Raises:
        Refused: It is computed on the chip.
    """
    if isinstance(value, jax.core.Tracer):
        raise Refused(f"the value of its {what} is known only when it runs")
    return np.asarray(value)


def _folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda a, *inputs: reduce(function, inputs)


def _plain(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda a, *inputs: function(*inputs)


def _axes(a: Attributes, axes: Array | None) -> tuple[int, ...] | None:
    """Axes from an input, or the attribute of older opsets."""
    if axes is None:
        return tuple(a["axes"].as_ints()) if "axes" in a else None
    return tuple(int(axis) for axis in known(axes, "list of axes").reshape(-1))


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def compute(a: Attributes, x: Array, axes: Array | None = None) -> Array:
        chosen = _axes(a, axes)
        if not chosen and a.get_int("noop_with_empty_axes", 0):
            return x
        return function(x, axis=chosen or None, keepdims=bool(a.get_int("keepdims", 1))).astype(x.dtype)

    return compute


def _arg(function: Callable[..., Array]) -> Callable[..., Array]:
    def compute(a: Attributes, x: Array) -> Array:
        axis, last = a.get_int("axis", 0), a.get_int("select_last_index", 0)
        found = function(jnp.flip(x, axis) if last else x, axis=axis, keepdims=bool(a.get_int("keepdims", 1)))
        return (x.shape[axis] - 1 - found if last else found).astype(jnp.int64)

    return compute


def _divide(a: Attributes, x: Array, y: Array) -> Array:
    return jax.lax.div(*jnp.broadcast_arrays(x, y))  # integers towards zero


def _clip(a: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low, high = (a[n].as_float() if n in a else v for n, v in (("min", low), ("max", high)))
    return jnp.clip(x, low, high).astype(x.dtype)


def _is_infinite(a: Attributes, x: Array) -> Array:
    positive, negative = a.get_int("detect_positive", 1), a.get_int("detect_negative", 1)
    return jnp.isinf(x) & ((x > 0) & bool(positive) | (x < 0) & bool(negative))


def _cast(a: Attributes, x: Array) -> Array:
    dtype = ir.DataType(a["to"].as_int())
    if dtype.is_string() or dtype.bitwidth < 8:
        raise Refused(f"it casts to {dtype.name}")
    return jnp.asarray(x).astype(dtype.numpy())


def _gemm(a: Attributes, x: Array, y: Array, bias: Array | None = None) -> Array:
    x, y = x.T if a.get_int("transA", 0) else x, y.T if a.get_int("transB", 0) else y
    product = jnp.matmul(x, y) * a.get_float("alpha", 1.0)
    return product if bias is None else product + bias * a.get_float("beta", 1.0)


def _integer_product(a: Attributes, x: Array, y: Array, x_zero: Array = 0, y_zero: Array = 0) -> Array:
    x_zero = jnp.asarray(x_zero, jnp.int32)
    column = x_zero[:, None] if x_zero.ndim == 1 and x_zero.size > 1 else x_zero
    return jnp.matmul(x.astype(jnp.int32) - column, y.astype(jnp.int32) - jnp.asarray(y_zero, jnp.int32))


def _reshape(a: Attributes, x: Array, shape: Array) -> Array:
    sizes = [int(size) for size in known(shape, "shape")]
    if not a.get_int("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return jnp.reshape(x, sizes)


def _flatten(a: Attributes, x: Array) -> Array:
    axis = a.get_int("axis", 1)
    rows = int(np.prod(x.shape[: axis + x.ndim if axis < 0 else axis]))
    return jnp.reshape(x, (rows, x.size // max(rows, 1)))


def _slice(
    a: Attributes, x: Array, starts: Array = None, ends: Array = None, axes: Array = None, steps: Array = None
) -> Array:
    begin, end = (
        a[name].as_ints() if value is None else known(value, name).tolist()
        for name, value in (("starts", starts), ("ends", ends))
    )
    index = [slice(None)] * x.ndim
    stride = [1] * len(begin) if steps is None else known(steps, "steps").tolist()
    for axis, first, last, step in zip(_axes(a, axes) or range(len(begin)), begin, end, stride, strict=True):
        # A negative end counts from the back, and one before the front has no form in Python but None.
        before = step < 0 and last < -x.shape[axis]
        index[axis] = slice(first, None if before else last, step)
    return x[tuple(index)]


def _split(a: Attributes, x: Array, sizes: Array | None = None) -> list[Array]:
    axis = a.get_int("axis", 0)
    if sizes is None and "split" not in a:
        size = -(-x.shape[axis] // a["num_outputs"].as_int())
        return jnp.split(x, list(range(size, x.shape[axis], size)), axis)
    parts = a["split"].as_ints() if sizes is None else known(sizes, "list of sizes")
    return jnp.split(x, np.cumsum(parts)[:-1].tolist(), axis)


def _pad(a: Attributes, x: Array, pads: Array, value: Array = None, axes: Array = None) -> Array:
    chosen = _axes(a, axes) or range(x.ndim)
    before, after = np.split(known(pads, "padding"), 2)
    width = [(0, 0)] * x.ndim
    for axis, pair in zip(chosen, zip(before.tolist(), after.tolist(), strict=True), strict=True):
        width[axis] = pair
    if min(min(pair) for pair in width) < 0:
        raise Refused("its padding is negative")
    mode = a.get_string("mode", "constant")
    if mode == "constant":
        return jnp.pad(x, width, constant_values=0 if value is None else jnp.asarray(value).reshape(()))
    return jnp.pad(x, width, mode)


def _gather(a: Attributes, x: Array, index: Array) -> Array:
    axis = a.get_int("axis", 0)
    return jnp.take(x, jnp.where(index < 0, index + x.shape[axis], index), axis, mode="clip")


def _gather_elements(a: Attributes, x: Array, index: Array) -> Array:
    axis = a.get_int("axis", 0)
    kept = tuple(slice(n) if d != axis % x.ndim else slice(None) for d, n in enumerate(index.shape))
    return jnp.take_along_axis(x[kept], index, axis)


def _gather_nd(a: Attributes, x: Array, index: Array) -> Array:
    def gather(x: Array, index: Array) -> Array:
        return x[tuple(jnp.moveaxis(index, -1, 0))]

    for _ in range(a.get_int("batch_dims", 0)):
        gather = jax.vmap(gather)
    return gather(x, index)


_SCATTER = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


def _scatter_nd(a: Attributes, x: Array, index: Array, updates: Array) -> Array:
    where = jnp.asarray(x).at[tuple(jnp.moveaxis(jnp.asarray(index), -1, 0))]
    return getattr(where, _SCATTER[a.get_string("reduction", "none")])(updates)


def _scatter_elements(a: Attributes, x: Array, index: Array, updates: Array) -> Array:
    axis = a.get_int("axis", 0) % x.ndim
    places = list(jnp.indices(index.shape, dtype=jnp.int64))
    places[axis] = jnp.asarray(index)
    return getattr(jnp.asarray(x).at[tuple(places)], _SCATTER[a.get_string("reduction", "none")])(updates)


def _constant(a: Attributes) -> Array:
    (given,) = (attribute for name, attribute in a.items() if name.startswith("value"))
    if given.type == ir.AttributeType.TENSOR:
        return given.as_tensor().numpy()
    types = {ir.AttributeType.FLOAT: np.float32, ir.AttributeType.FLOATS: np.float32}
    types |= {ir.AttributeType.INT: np.int64, ir.AttributeType.INTS: np.int64}
    if given.type not in types:
        raise Refused(f"it is a constant of type {given.type.name}")
    return np.asarray(given.value, types[given.type])


def _filled(a: Attributes, shape: Array) -> Array:
    value = a["value"].as_tensor().numpy() if "value" in a else np.zeros(1, np.float32)
    return jnp.full(known(shape, "shape").tolist(), value.reshape(()))


def _cumulative(a: Attributes, x: Array, axis: Array) -> Array:
    along = int(known(axis, "axis"))
    ordered = jnp.flip(x, along) if a.get_int("reverse", 0) else x
    total = jnp.cumsum(ordered, along, dtype=x.dtype)
    total = total - ordered if a.get_int("exclusive", 0) else total
    return jnp.flip(total, along) if a.get_int("reverse", 0) else total


def _top(a: Attributes, x: Array, k: Array) -> tuple[Array, Array]:
    axis, count = a.get_int("axis", -1), int(known(k, "k").reshape(()))
    order = jnp.argsort(x, axis, stable=True, descending=bool(a.get_int("largest", 1)))
    index = jax.lax.slice_in_dim(order, 0, count, axis=axis)
    return jnp.take_along_axis(x, index, axis), index.astype(jnp.int64)


def _one_hot(a: Attributes, index: Array, depth: Array, values: Array) -> Array:
    count = int(known(depth, "depth").reshape(()))
    axis, places = a.get_int("axis", -1), index.astype(jnp.int64)
    hot = jnp.expand_dims(places, axis) % count == jnp.arange(count).reshape(
        [-1 if d == axis % (index.ndim + 1) else 1 for d in range(index.ndim + 1)]
    )
    return jnp.where(hot, values[1], values[0])


def _triangle(a: Attributes, x: Array, k: Array = 0) -> Array:
    return (jnp.triu if a.get_int("upper", 1) else jnp.tril)(x, int(known(k, "diagonal").reshape(())))


def _spread(a: Attributes, parameter: Array, shape: tuple[int, ...]) -> Array:
    """Scales or zero points in the shape of what they belong to: one in all, one a slice of an axis, one a block."""
    axis = a.get_int("axis", 1)
    if block := a.get_int("block_size", 0):
        return jax.lax.slice_in_dim(jnp.repeat(parameter, block, axis), 0, shape[axis], axis=axis)
    if parameter.size == 1:
        return jnp.reshape(parameter, ())
    return jnp.reshape(parameter, [-1 if d == axis % len(shape) else 1 for d in range(len(shape))])


def _dequantize(a: Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    values = x.astype(scale.dtype)
    if zero is not None:
        values = values - _spread(a, zero, x.shape).astype(scale.dtype)
    return values * _spread(a, scale, x.shape)


def _quantize(a: Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    if dtype not in (np.int8, np.uint8, np.int16, np.uint16) or ("output_dtype" in a and zero is None):
        raise Refused("it quantises to something else than integers of 8 or 16 bits")
    limits = jnp.iinfo(dtype)
    rounded = jnp.round(x / _spread(a, scale, x.shape))
    shifted = rounded if zero is None else rounded + _spread(a, zero, x.shape).astype(x.dtype)
    return jnp.clip(shifted, limits.min, limits.max).astype(dtype)


def _normalise_batch(a: Attributes, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    if a.get_int("training_mode", 0):
        raise Refused("it is in training mode")
    scale, bias, mean, variance = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, variance))
    return (x - mean) * jax.lax.rsqrt(variance + a.get_float("epsilon", 1e-5)) * scale + bias


def _window(
    a: Attributes, sizes: tuple[int, ...], kernel: list[int]
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and padding of a convolution or a pooling over ``sizes``."""
    rank = len(kernel)
    strides, dilations = list(a.get_ints("strides", [1] * rank)), list(a.get_ints("dilations", [1] * rank))
    mode = a.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = list(a.get_ints("pads", [0] * 2 * rank))
        return strides, dilations, list(zip(pads[:rank], pads[rank:], strict=True))
    padding = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        padding.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    return strides, dilations, padding


def _convolve(a: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    strides, dilations, padding = _window(a, x.shape[2:], list(weight.shape[2:]))
    made = jax.lax.conv_general_dilated(
        x, weight, strides, padding, rhs_dilation=dilations, feature_group_count=a.get_int("group", 1)
    )
    return made if bias is None else made + bias.reshape(-1, *[1] * (x.ndim - 2))


def _pool(a: Attributes, x: Array, start: Any, function: Callable[..., Array]) -> tuple[Array, Array]:
    """A window's reduction, and how many values of the tensor itself each has seen."""
    if a.get_int("ceil_mode", 0):
        raise Refused("it rounds sizes up (ceil_mode)")
    strides, dilations, padding = _window(a, x.shape[2:], a["kernel_shape"].as_ints())

    def over(values: Array, start: Any, function: Callable[..., Array]) -> Array:
        window = ((1, 1, *a["kernel_shape"].as_ints()), (1, 1, *strides), ((0, 0), (0, 0), *padding))
        return jax.lax.reduce_window(values, start, function, *window, window_dilation=(1, 1, *dilations))

    return over(x, start, function), over(jnp.ones_like(x), np.zeros((), x.dtype), jax.lax.add)


def _max_pool(a: Attributes, x: Array) -> Array:
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return _pool(a, x, np.asarray(lowest, x.dtype), jax.lax.max)[0]


def _average_pool(a: Attributes, x: Array) -> Array:
    total, seen = _pool(a, x, np.zeros((), x.dtype), jax.lax.add)
    return total / (np.prod(a["kernel_shape"].as_ints()) if a.get_int("count_include_pad", 0) else seen)


OPERATORS: dict[str, Callable[..., Any]] = {
    name: _plain(function)
    for name, function in {
        "Abs": jnp.abs, "Acos": jnp.arccos, "Acosh": jnp.arccosh, "Add": jnp.add, "And": jnp.logical_and,
        "Asin": jnp.arcsin, "Asinh": jnp.arcsinh, "Atan": jnp.arctan, "Atanh": jnp.arctanh,
        "BitwiseAnd": jnp.bitwise_and, "BitwiseNot": jnp.bitwise_not, "BitwiseOr": jnp.bitwise_or,
        "BitwiseXor": jnp.bitwise_xor, "Ceil": jnp.ceil, "Cos": jnp.cos, "Cosh": jnp.cosh, "Det": jnp.linalg.det,
        "Equal": jnp.equal, "Erf": jax.scipy.special.erf, "Exp": jnp.exp, "Floor": jnp.floor,
        "Greater": jnp.greater, "GreaterOrEqual": jnp.greater_equal, "Identity": jnp.asarray, "IsNaN": jnp.isnan,
        "Less": jnp.less, "LessOrEqual": jnp.less_equal, "Log": jnp.log, "MatMul": jnp.matmul, "Mul": jnp.multiply,
        "Neg": jnp.negative, "Not": jnp.logical_not, "Or": jnp.logical_or, "Reciprocal": jnp.reciprocal,
        "Relu": jax.nn.relu, "Round": jnp.round, "Sigmoid": jax.nn.sigmoid, "Sign": jnp.sign, "Sin": jnp.sin,
        "Sinh": jnp.sinh, "Sqrt": jnp.sqrt, "Sub": jnp.subtract, "Tan": jnp.tan, "Tanh": jnp.tanh, "Where": jnp.where,
        "Xor": jnp.logical_xor,
    }.items()
} | {
    "ArgMax": _arg(jnp.argmax),
    "ArgMin": _arg(jnp.argmin),
    "AveragePool": _average_pool,
    "BatchNormalization": _normalise_batch,
    "Cast": _cast,
    "CastLike": lambda a, x, like: jnp.asarray(x).astype(like.dtype),
    "Clip": _clip,
    "Concat": lambda a, *inputs: jnp.concatenate(inputs, a["axis"].as_int()),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _convolve,
    "CumSum": _cumulative,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Einsum": lambda a, *inputs: jnp.einsum(a["equation"].as_string(), *inputs),
    "Expand": lambda a, x, shape: x * jnp.ones(known(shape, "shape").tolist(), x.dtype),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: jnp.mean(x, tuple(range(2, x.ndim)), keepdims=True),
    "GlobalMaxPool": lambda a, x: jnp.max(x, tuple(range(2, x.ndim)), keepdims=True),
    "IsInf": _is_infinite,
    "LogSoftmax": lambda a, x: jax.nn.log_softmax(x, a.get_int("axis", -1)),
    "MatMulInteger": _integer_product,
    "Max": _folded(jnp.maximum),
    "MaxPool": _max_pool,
    "Mean": lambda a, *inputs: reduce(jnp.add, inputs) / len(inputs),
    "Min": _folded(jnp.minimum),
    "Mod": lambda a, x, y: (jnp.fmod if a.get_int("fmod", 0) else jnp.mod)(x, y),
    "OneHot": _one_hot,
    "Pad": _pad,
    "Pow": lambda a, x, y: jnp.power(x, y).astype(x.dtype),
    "QuantizeLinear": _quantize,
    "Range": lambda a, *bounds: jnp.arange(*(known(b, "bounds").reshape(()) for b in bounds)),
    "ReduceMax": _reduction(jnp.max),
    "ReduceMean": _reduction(jnp.mean),
    "ReduceMin": _reduction(jnp.min),
    "ReduceProd": _reduction(jnp.prod),
    "ReduceSum": _reduction(jnp.sum),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": lambda a, x: np.array(x.shape[slice(a.get_int("start", 0), a.get_int("end", x.ndim))], np.int64),
    "Size": lambda a, x: np.array(x.size, np.int64),
    "Slice": _slice,
    "Softmax": lambda a, x: jax.nn.softmax(x, a.get_int("axis", -1)),
    "Split": _split,
    "Squeeze": lambda a, x, axes=None: jnp.squeeze(x, _axes(a, axes)),
    "Sum": _folded(jnp.add),
    "Tile": lambda a, x, repeats: jnp.tile(x, known(repeats, "list of repeats").tolist()),
    "TopK": _top,
    "Transpose": lambda a, x: jnp.transpose(x, a["perm"].as_ints() if "perm" in a else None),
    "Trilu": _triangle,
    "Unsqueeze": lambda a, x, axes=None: jnp.expand_dims(x, _axes(a, axes)),
}  # fmt: skip
