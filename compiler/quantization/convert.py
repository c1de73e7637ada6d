"""Arithmetic of weight formats: float to integers by group, and back. Lazy: computed when written.

Round-to-nearest by group. For 4 bits the range of each group is also shrunk in a few steps and
the one with the least squared error is kept, which costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.quantization.blockwise import BlockwiseWeight
from aicc.runtime.errors import UnsupportedError

Floats = NDArray[np.float32]
_ELEMENTS_AT_ONCE = 1 << 18
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
_E4M3 = 448  # the largest float8 of 4 bits of exponent and 3 of mantissa (Micikevicius et al., FP8 Formats, 2022)
_LARGEST = {"int4": 7.5 * 65504, "int8": 127 * 65504.0, "fp8": _E4M3 * 65504.0}  # what the largest scale reaches
_SMALL = 1024  # elements of a scale or zero point that passes look at (onnx_ir: which constants are equal)
_ONNX = {"int4": ir.DataType.UINT4, "int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


@dataclass(frozen=True, slots=True)
class QuantizedTensors:
    """Lazy initializers of one matrix; see :func:`aicc.compiler.quantization.blockwise.add_blockwise`."""

    values: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None


def reader(weight: BlockwiseWeight) -> Callable[[], Floats]:
    """A function that gives the float32 ``[N, K]`` matrix a block-wise weight stands for.

    It keeps the tensors, not the graph's values, whose tensors may be replaced before it is called.
    """
    stored = [
        None if v is None else v.const_value for v in (weight.values, weight.scales, weight.zero_points, weight.minimum)
    ]
    return lambda: dequantize(weight.group_size, *(None if t is None else t.numpy() for t in stored))


def dequantize(
    group_size: int, values: NDArray, scales: NDArray, zero_points: NDArray | None, minimum: NDArray | None
) -> Floats:
    """``(values - zero_points) * scales + minimum`` by group, float32 ``[N, K]``."""
    rows, columns = values.shape
    grouped = values.astype(np.float32).reshape(rows, columns // group_size, group_size)
    if zero_points is not None:
        grouped -= zero_points.astype(np.float32)[..., None]
    grouped *= scales.astype(np.float32)[..., None]
    if minimum is not None:
        grouped += minimum.astype(np.float32).reshape(*grouped.shape[:2], 1)
    return grouped.reshape(rows, columns)


def quantize_symmetric_int8(matrix: Floats, group_size: int) -> tuple[NDArray, NDArray, None]:
    """Int8 values ``[N, K]`` and float16 scales ``[N, K/group_size]``; the largest magnitude is 127."""
    grouped = matrix.reshape(len(matrix), -1, group_size)
    scales = _float16(np.abs(grouped).max(axis=2) / 127)
    values = np.rint(grouped * _inverse(scales)[..., None]).clip(-127, 127)
    return values.reshape(matrix.shape).astype(np.int8), scales, None


def quantize_e4m3(matrix: Floats, group_size: int) -> tuple[NDArray, NDArray, None]:
    """Float8 values ``[N, K]`` and float16 scales ``[N, K/group_size]``; the largest magnitude is 448."""
    grouped = matrix.reshape(len(matrix), -1, group_size)
    scales = _float16(np.abs(grouped).max(axis=2) / _E4M3)
    values = (grouped * _inverse(scales)[..., None]).clip(-_E4M3, _E4M3)
    return values.reshape(matrix.shape).astype(ml_dtypes.float8_e4m3fn), scales, None


def quantize_uint4(matrix: Floats, group_size: int) -> tuple[NDArray, NDArray, NDArray]:
    """Uint4 values, float16 scales and uint4 zero points of least squared error over a few ranges."""
    grouped = matrix.reshape(len(matrix), -1, group_size)
    low = np.minimum(grouped.min(axis=2), 0)
    high = np.maximum(grouped.max(axis=2), 0)
    best: list[NDArray] = []
    for shrink in _SHRINKS:
        scales = _float16((high - low) * (shrink / 15))
        inverse = _inverse(scales)
        zero = np.rint(-low * shrink * inverse).clip(0, 15)
        values = np.rint(grouped * inverse[..., None] + zero[..., None]).clip(0, 15)
        error = (((values - zero[..., None]) * scales.astype(np.float32)[..., None] - grouped) ** 2).sum(axis=2)
        if not best:
            best = [values, scales, zero, error]
            continue
        better = error < best[3]
        best[0][better] = values[better]
        for kept, new in zip(best[1:], (scales, zero, error), strict=True):
            kept[better] = new[better]
    values, scales, zero, _ = best
    return values.reshape(matrix.shape).astype(ml_dtypes.uint4), scales, zero.astype(ml_dtypes.uint4)


_QUANTIZERS = {"int4": quantize_uint4, "int8": quantize_symmetric_int8, "fp8": quantize_e4m3}


def to_float16(matrix: Floats, name: str) -> NDArray[np.float16]:
    """The matrix rounded to float16.

    Raises:
        UnsupportedError: A value is too large for it, or is not a number.
    """
    _require(matrix, name, float(np.finfo(np.float16).max), "float16")
    return matrix.astype(np.float16)


def _require(matrix: Floats, name: str, limit: float, what: str) -> None:
    largest = float(np.maximum(matrix.max(initial=0), -matrix.min(initial=0)))
    if not largest <= limit:  # true of NaN too
        raise UnsupportedError(
            f"weight {name} has a value of {largest:g}, which {what} cannot hold.", "Compile with --quant fp32."
        )


def lazy_quantized(
    read: Callable[[], Floats], shape: tuple[int, int], kind: str, group_size: int, name: str
) -> QuantizedTensors:
    """Initializers of a matrix quantised when they are first read, and dropped when all were read.

    Args:
        read: Gives the float32 matrix.
        shape: Its rows and columns.
        kind: ``int4`` (asymmetric), ``int8`` (symmetric) or ``fp8`` (e4m3).
        group_size: Columns that share a scale; divides the columns.
        name: The weight, for messages: reading one with a value that is too large, or is not a
            number, raises :class:`~aicc.runtime.errors.UnsupportedError`.
    """
    rows, columns = shape
    groups = columns // group_size
    quantize = _QUANTIZERS[kind]
    made: dict[int, NDArray | None] = {}
    kept: dict[int, ir.TensorProtocol] = {}  # small parts, which passes over the graph read again and again

    def take(index: int) -> ir.TensorProtocol:
        if index in kept:
            return kept[index]
        if index not in made:  # each part is read once per writing; the last reader empties the store
            matrix = read()
            _require(matrix, name, _LARGEST[kind], f"{kind} with float16 scales")
            made.update(enumerate(_by_rows(quantize, matrix, group_size)))
        part = ir.tensor(made.pop(index))
        if part.size <= _SMALL:
            kept[index] = part
        return part

    def lazy(index: int, dtype: ir.DataType, dims: list[int]) -> ir.LazyTensor:
        return ir.LazyTensor(lambda: take(index), dtype=dtype, shape=ir.Shape(dims))

    return QuantizedTensors(
        lazy(0, _ONNX[kind], [rows, columns]),
        lazy(1, ir.DataType.FLOAT16, [rows, groups]),
        lazy(2, ir.DataType.UINT4, [rows, groups]) if kind == "int4" else None,
    )


def _by_rows(
    quantize: Callable[[Floats, int], tuple[NDArray, NDArray, NDArray | None]], matrix: Floats, group_size: int
) -> list[NDArray | None]:
    """Quantise some rows at a time, whose temporaries fit a cache; those of an embedding table would be gigabytes."""
    step = max(1, _ELEMENTS_AT_ONCE // max(1, matrix.shape[1]))
    pieces = [quantize(matrix[begin : begin + step], group_size) for begin in range(0, max(1, len(matrix)), step)]
    return [None if part[0] is None else np.concatenate(part) for part in zip(*pieces, strict=True)]


def _float16(scales: Floats) -> NDArray[np.float16]:
    """Scales as they are stored; not below the smallest normal, so that they can be divided by."""
    tiny = np.finfo(np.float16).tiny
    return np.where(scales == 0, 0, np.clip(scales, tiny, np.finfo(np.float16).max)).astype(np.float16)


def _inverse(scales: NDArray[np.float16]) -> Floats:
    wide = scales.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
