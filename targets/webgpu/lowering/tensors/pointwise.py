"""Operators whose result at a place follows from their inputs at that place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
import onnx_ir as ir

from aicc.targets.webgpu.lowering.tensors.builder import Builder, reshaped, scalar_of
from aicc.targets.webgpu.lowering.tensors.values import Kernel, Number, Place, Refused, Stored, Value, literal

Attributes = Mapping[str, ir.Attr]
_D = ir.DataType
BOOL = _D.BOOL
FLOATS = (_D.FLOAT, _D.FLOAT16, _D.BFLOAT16)
WIDE = (*FLOATS, _D.INT32, _D.UINT32)  # whose arithmetic is the shader's own

# Of a float, by its name {x}.
FLOAT_FUNCTIONS = {
    "Acos": "atan2(sqrt((1.0 - {x}) * (1.0 + {x})), {x})", "Acosh": "acosh({x})",
    "Asin": "atan2({x}, sqrt((1.0 - {x}) * (1.0 + {x})))", "Asinh": "asinh({x})", "Atan": "atan({x})",
    "Atanh": "atanh({x})", "Ceil": "ceil({x})", "Cos": "cos({x})", "Cosh": "cosh({x})", "Exp": "exp({x})",
    "Floor": "floor({x})", "Log": "log({x})", "Reciprocal": "1.0 / {x}", "Round": "round({x})",
    "Sigmoid": "1.0 / (1.0 + exp(clamp(-{x}, -88.0, 88.0)))", "Sin": "sin({x})", "Sinh": "sinh({x})",
    "Softplus": "max({x}, 0.0) + log(1.0 + exp(-abs({x})))", "Softsign": "{x} / (1.0 + abs({x}))",
    "Sqrt": "sqrt({x})", "Tan": "tan({x})", "Tanh": "tanh(clamp({x}, -20.0, 20.0))",
    "HardSwish": "{x} * clamp({x} / 6.0 + 0.5, 0.0, 1.0)",
}  # fmt: skip
# The same with attributes: their defaults, and where they stand.
PARAMETERS: dict[str, tuple[dict[str, float], str]] = {
    "Celu": ({"alpha": 1.0}, "max({x}, 0.0) + min(0.0, {alpha} * (exp({x} / {alpha}) - 1.0))"),
    "Elu": ({"alpha": 1.0}, "select({alpha} * (exp({x}) - 1.0), {x}, {x} > 0.0)"),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, "clamp({alpha} * {x} + {beta}, 0.0, 1.0)"),
    "LeakyRelu": ({"alpha": 0.01}, "select({alpha} * {x}, {x}, {x} >= 0.0)"),
    "Selu": (
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        "{gamma} * select({alpha} * (exp({x}) - 1.0), {x}, {x} > 0.0)",
    ),
    "Shrink": (
        {"lambd": 0.5, "bias": 0.0},
        "select(select(0.0, {x} - {bias}, {x} > {lambd}), {x} + {bias}, {x} < -{lambd})",
    ),
    "Swish": ({"alpha": 1.0}, "{x} / (1.0 + exp(clamp(-{alpha} * {x}, -88.0, 88.0)))"),
    "ThresholdedRelu": ({"alpha": 1.0}, "select(0.0, {x}, {x} > {alpha})"),
}
_COMPARISONS = {"Equal": "==", "Greater": ">", "GreaterOrEqual": ">=", "Less": "<", "LessOrEqual": "<="}
_BITS = {"And": "&", "Or": "|", "Xor": "^", "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}


def only(types: tuple[ir.DataType, ...], *values: Value) -> None:
    """Refuse types that an operator is not computed in.

    Raises:
        Refused: Names the type.
    """
    for value in values:
        if value.dtype not in types:
            why = "kept in 32 bits, which its result may not fit" if value.dtype == _D.INT64 else "not computed with"
            raise Refused(f"it computes with {value.dtype.name.lower()}, whose values are {why}")


def _float_function(text: str, defaults: Mapping[str, float]) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value) -> Value:
        only(FLOATS, x)
        chosen = {name: literal(a.get_float(name, default), "f32") for name, default in defaults.items()}
        return b.elementwise(x.dtype, lambda name: text.format(x=name, **chosen), x)

    return lower


def _arithmetic(text: str) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
        only(WIDE, x, y)
        return b.elementwise(x.dtype, lambda p, q: text.format(x=p, y=q), x, y)

    return lower


def _divide(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    return b.elementwise(x.dtype, lambda p, q: f"{p} / {q}", x, y)  # whole numbers towards zero, in WGSL too


def _folded(text: str, types: tuple[ir.DataType, ...]) -> Callable[..., Value]:
    def lower(b: Builder, a: Attributes, *inputs: Value) -> Value:
        only(types, *inputs)
        return reduce(lambda x, y: b.elementwise(x.dtype, lambda p, q: text.format(x=p, y=q), x, y), inputs)

    return lower


def _mean(b: Builder, a: Attributes, *inputs: Value) -> Value:
    only(FLOATS, *inputs)
    total = OPERATORS["Sum"](b, a, *inputs)
    return b.elementwise(total.dtype, lambda x: f"{x} * {literal(1 / len(inputs), 'f32')}", total)


def _compare(sign: str) -> Callable[..., Value]:
    return lambda b, a, x, y: b.elementwise(BOOL, lambda p, q: f"u32({p} {sign} {q})", x, y)


def _bits(sign: str) -> Callable[..., Value]:
    return lambda b, a, x, y: b.elementwise(x.dtype, lambda p, q: f"{p} {sign} {q}", x, y)


def _shift(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    only((_D.UINT32,), x, y)
    sign = "<<" if a.get_string("direction", "LEFT") == "LEFT" else ">>"
    return b.elementwise(x.dtype, lambda p, q: f"select(0u, {p} {sign} ({q} & 31u), {q} < 32u)", x, y)


def _simple(text: str) -> Callable[..., Value]:
    """For numbers of any kind that cannot grow."""
    return lambda b, a, x: b.elementwise(x.dtype, lambda name: text.format(x=name), x)


def _relu(b: Builder, a: Attributes, x: Value) -> Value:
    return b.elementwise(x.dtype, lambda name: f"max({name}, {literal(0, x.scalar)})", x)


def _parametric_relu(b: Builder, a: Attributes, x: Value, slope: Value) -> Value:
    only(FLOATS, x)
    return b.elementwise(x.dtype, lambda p, s: f"select({p} * {s}, {p}, {p} >= 0.0)", x, slope)


def _clip(b: Builder, a: Attributes, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    for name, bound in (("min", low), ("max", high)):
        if bound is None and name in a:
            bound = Number((), x.dtype, value=a[name].as_float(), plain=True)
        if bound is not None:
            least = "max" if name == "min" else "min"
            x = b.elementwise(x.dtype, lambda p, q, least=least: f"{least}({p}, {q})", x, bound)
    return x


def _erf(b: Builder, a: Attributes, x: Value) -> Value:
    only(FLOATS, x)
    return b.elementwise(x.dtype, lambda name: f"error_function({name})", x)


def _gelu(b: Builder, a: Attributes, x: Value) -> Value:
    only(FLOATS, x)
    text = "0.5 * {x} * (1.0 + error_function({x} * 0.70710678f))"
    if a.get_string("approximate", "none") == "tanh":
        text = "0.5 * {x} * (1.0 + tanh(clamp(0.79788456f * ({x} + 0.044715f * {x} * {x} * {x}), -20.0, 20.0)))"
    return b.elementwise(x.dtype, lambda name: text.format(x=name), x)


def _power(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    only(FLOATS, x)
    whole = isinstance(y, Number) and float(y.value).is_integer()
    if isinstance(y, Number) and float(y.value) in (1, 2, 3, 4):
        times = " * ".join(["{x}"] * int(y.value))
        return b.elementwise(x.dtype, lambda p, _: times.format(x=p), x, y)
    if isinstance(y, Number) and float(y.value) == 0.5:
        return b.elementwise(x.dtype, lambda p, _: f"sqrt({p})", x, y)
    if isinstance(y, Number) and not whole:
        return b.elementwise(x.dtype, lambda p, q: f"pow({p}, f32({q}))", x, y)

    def general(p: str, q: str) -> str:  # pow() is for numbers above zero alone
        odd = f"({p} < 0.0 && floor(f32({q}) * 0.5) * 2.0 != f32({q}))"
        return f"select(1.0, -1.0, {odd}) * select(pow(abs({p}), f32({q})), 1.0, f32({q}) == 0.0)"

    return b.elementwise(x.dtype, general, x, y)


def _remainder(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    if a.get_int("fmod", 0):
        return b.elementwise(x.dtype, lambda p, q: f"{p} % {q}", x, y)
    if x.scalar == "f32":
        return b.elementwise(x.dtype, lambda p, q: f"{p} - {q} * floor({p} / {q})", x, y)
    if x.scalar == "u32":
        return b.elementwise(x.dtype, lambda p, q: f"{p} % {q}", x, y)
    return b.elementwise(x.dtype, lambda p, q: f"(({p} % {q}) + {q}) % {q}", x, y)


def _is_infinite(b: Builder, a: Attributes, x: Value) -> Value:
    wanted = [
        code
        for name, code in (("detect_positive", "0x7f800000u"), ("detect_negative", "0xff800000u"))
        if a.get_int(name, 1)
    ]
    return b.elementwise(
        BOOL, lambda p: "u32(" + (" || ".join(f"bitcast<u32>({p}) == {c}" for c in wanted) or "false") + ")", x
    )


def _is_nan(b: Builder, a: Attributes, x: Value) -> Value:
    return b.elementwise(BOOL, lambda p: f"u32((bitcast<u32>({p}) & 0x7fffffffu) > 0x7f800000u)", x)


def _where(b: Builder, a: Attributes, condition: Value, x: Value, y: Value) -> Value:
    return b.elementwise(x.dtype, lambda c, p, q: f"select({q}, {p}, {c} != 0u)", condition, x, y)


# Integers of fewer bits, which wrap around.
_WRAPPED = {
    _D.INT8: "extractBits(i32({x}), 0u, 8u)", _D.INT16: "extractBits(i32({x}), 0u, 16u)",
    _D.UINT8: "i32({x}) & 255", _D.UINT16: "i32({x}) & 65535",
}  # fmt: skip


def cast(b: Builder, x: Value, dtype: ir.DataType | None) -> Value:
    """A tensor's numbers as another type.

    Raises:
        Refused: The numbers may not be right in what the device has for the type.
    """
    scalar = scalar_of(dtype)
    assert dtype is not None
    if dtype == x.dtype:
        return x
    if dtype == BOOL:
        return b.elementwise(dtype, lambda p: f"u32({p} != {literal(0, x.scalar)})", x)
    if dtype == _D.INT64 and x.dtype in (*FLOATS, _D.UINT32):
        raise Refused("it casts to int64, whose values are kept in 32 bits")
    if dtype in (_D.FLOAT16, _D.BFLOAT16) and x.dtype != BOOL:
        raise Refused(f"it casts to {dtype.name.lower()}, and floats are kept in 32 bits")
    if dtype in _WRAPPED and x.dtype != BOOL:
        return b.elementwise(dtype, lambda p: _WRAPPED[dtype].format(x=p), x, plain=True)
    return b.elementwise(dtype, lambda p: f"{scalar}({p})", x, plain=True)


def _cast(b: Builder, a: Attributes, x: Value) -> Value:
    return cast(b, x, _D(a["to"].as_int()))


def _spread(b: Builder, a: Attributes, parameter: Value, shape: tuple[int, ...]) -> Value:
    """Scales or zero points in a shape that broadcasts: one in all, one a slice of an axis, one a block."""
    axis = a.get_int("axis", 1) % max(len(shape), 1)
    if block := a.get_int("block_size", 0):
        parts = b.fetched(parameter)

        def at(kernel: Kernel, place: Place) -> str:
            coords = list(place.coords())
            coords[axis] = kernel.let(f"{coords[axis]} / {block}")
            return parts.at(kernel, Place(kernel, parts.shape, coords))

        return b.map(shape, parameter.dtype, at, parts)
    if isinstance(parameter, Number):
        return Number((), parameter.dtype, value=parameter.value, plain=True)
    sizes = [size if d == axis and parameter.size > 1 else 1 for d, size in enumerate(shape)]
    return reshaped(b.stored(parameter), sizes)


def _dequantize(b: Builder, a: Attributes, x: Value, scale: Value, zero: Value | None = None) -> Value:
    inputs = [x, _spread(b, a, scale, x.shape)]
    if zero is not None:
        inputs.append(_spread(b, a, zero, x.shape))

    def at(q: str, s: str, z: str | None = None) -> str:
        return f"f32({q}) * {s}" if z is None else f"(f32({q}) - f32({z})) * {s}"

    return b.elementwise(scale.dtype, at, *inputs, plain=True)


def _quantize(b: Builder, a: Attributes, x: Value, scale: Value, zero: Value | None = None) -> Value:
    dtype = _D.UINT8 if zero is None else zero.dtype
    if dtype not in (_D.INT8, _D.UINT8, _D.INT16, _D.UINT16) or ("output_dtype" in a and zero is None):
        raise Refused("it quantises to something else than integers of 8 or 16 bits")
    limits = np.iinfo(dtype.numpy())
    inputs = [x, _spread(b, a, scale, x.shape)]
    if zero is not None:
        inputs.append(_spread(b, a, zero, x.shape))

    def at(p: str, s: str, z: str = "0") -> str:
        return f"i32(clamp(round({p} / {s}) + f32({z}), {limits.min}.0, {limits.max}.0))"

    return b.elementwise(dtype, at, *inputs)


def _normalise_batch(
    b: Builder, a: Attributes, x: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Value:
    """One product and one sum where the statistics are constants, as part of what computes ``x``."""
    if a.get_int("training_mode", 0):
        raise Refused("it is in training mode")
    epsilon = a.get_float("epsilon", 1e-5)
    shape = (-1, *[1] * (len(x.shape) - 2))
    arrays = [known(value) for value in (scale, bias, mean, variance)]
    if any(array is None for array in arrays):
        raise Refused("its statistics are computed")
    factor = arrays[0] / np.sqrt(arrays[3] + epsilon)
    offset = arrays[1] - arrays[2] * factor
    constants = [b.constant(v.astype(np.float32).reshape(shape)) for v in (factor, offset)]
    return b.elementwise(x.dtype, lambda p, f, o: f"{p} * {f} + {o}", x, *constants)


def known(value: Value | None) -> np.ndarray | None:
    """A constant's values as float64 or int64; None if it is none."""
    if isinstance(value, Number):
        array = np.full(value.shape, value.value)
    elif isinstance(value, Stored) and value.buffer.constant is not None:
        constant = value.buffer.constant
        array = (constant if isinstance(constant, np.ndarray) else constant.numpy()).reshape(value.shape)
    else:
        return None
    return array.astype(np.float64 if value.scalar == "f32" else np.int64)


NUMBERS = (*WIDE, _D.INT64, _D.INT16, _D.INT8, _D.UINT8, _D.UINT16)
OPERATORS: dict[str, Callable[..., Value]] = (
    {name: _float_function(text, {}) for name, text in FLOAT_FUNCTIONS.items()}
    | {name: _float_function(text, defaults) for name, (defaults, text) in PARAMETERS.items()}
    | {name: _compare(sign) for name, sign in _COMPARISONS.items()}
    | {name: _bits(sign) for name, sign in _BITS.items()}
    | {
        "Abs": _simple("abs({x})"),
        "Add": _arithmetic("{x} + {y}"),
        "BatchNormalization": _normalise_batch,
        "BitShift": _shift,
        "BitwiseNot": _simple("~{x}"),
        "Cast": _cast,
        "CastLike": lambda b, a, x, like: cast(b, x, like.dtype),
        "Clip": _clip,
        "DequantizeLinear": _dequantize,
        "Div": _divide,
        "Dropout": lambda b, a, x, *rest: x,
        "Erf": _erf,
        "Gelu": _gelu,
        "Identity": lambda b, a, x: x,
        "IsInf": _is_infinite,
        "IsNaN": _is_nan,
        "Max": _folded("max({x}, {y})", NUMBERS),
        "Mean": _mean,
        "Min": _folded("min({x}, {y})", NUMBERS),
        "Mish": _float_function("{x} * tanh(clamp(max({x}, 0.0) + log(1.0 + exp(-abs({x}))), -20.0, 20.0))", {}),
        "Mod": _remainder,
        "Mul": _arithmetic("{x} * {y}"),
        "Neg": _simple("-{x}"),
        "Not": _simple("1u - {x}"),
        "PRelu": _parametric_relu,
        "Pow": _power,
        "QuantizeLinear": _quantize,
        "Relu": _relu,
        "Sign": _simple("sign({x})"),
        "Sub": _arithmetic("{x} - {y}"),
        "Sum": _folded("{x} + {y}", WIDE),
        "Where": _where,
    }
)
