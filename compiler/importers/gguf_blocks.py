"""GGUF block formats as integers with scales, exactly.

Each format here becomes the block-wise form of :mod:`aicc.compiler.quantization.blockwise`:
``w = scale * q`` or ``w = scale * q + minimum`` over groups along a row. Scales stay float16 where
the file stores them so; where a format multiplies two numbers to get a scale (K-quants: a float16
by a 6 or 8 bit integer) the product needs more bits and is float32, which holds it exactly. Layouts
follow ggml's ``ggml-common.h`` and ``dequantize_row_*``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from gguf.constants import GGMLQuantizationType as GgmlType

Part = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How to take blocks apart.

    Attributes:
        bytes: Of a block.
        group: Values that share a scale.
        dtype: Of the integers in the graph.
        scale_dtype: Of scales and minimum.
        values: ``[B, bytes]`` uint8 → ``[B, block]`` integers.
        scales: ``[B, bytes]`` → ``[B, block / group]``.
        minimum: The same, added after scaling; None for symmetric formats.
    """

    bytes: int
    group: int
    dtype: ir.DataType
    scale_dtype: ir.DataType
    values: Part
    scales: Part
    minimum: Part | None = None


def _half(start: int) -> Part:
    """The float16 at a byte of each block."""
    return lambda blocks: np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _nibbles(packed: np.ndarray, width: int) -> np.ndarray:
    """Low nibbles of each ``width`` bytes, then their high nibbles, as uint8."""
    groups = packed.reshape(len(packed), -1, 1, width)
    return ((groups >> np.array([0, 4], np.uint8).reshape(2, 1)) & 0x0F).reshape(len(packed), -1)


def _bits(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """``count``-bit fields of each ``width`` bytes: the lowest fields of all, then the next."""
    shifts = np.arange(0, 8, count, dtype=np.uint8).reshape(-1, 1)
    groups = packed.reshape(len(packed), -1, 1, width)
    return ((groups >> shifts) & ((1 << count) - 1)).reshape(len(packed), -1)


def _fifth_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """The 32 high bits of Q5_0 and Q5_1, already shifted to their place."""
    return np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little") << 4


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight 6-bit scales and minima of a Q4_K or Q5_K block, packed into bytes 4 to 16."""
    scale, minimum, high = np.split(blocks[:, 4:16], 3, axis=1)
    scales = np.concatenate([scale & 0x3F, (high & 0x0F) | ((scale >> 2) & 0x30)], axis=1)
    minima = np.concatenate([minimum & 0x3F, (high >> 4) | ((minimum >> 2) & 0x30)], axis=1)
    return scales, minima


def _k_scale(blocks: np.ndarray) -> np.ndarray:
    return _half(0)(blocks).astype(np.float32) * _k_scales(blocks)[0].astype(np.float32)


def _k_minimum(blocks: np.ndarray) -> np.ndarray:
    return -(_half(2)(blocks).astype(np.float32) * _k_scales(blocks)[1].astype(np.float32))


def _q5_k_values(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, 16:48], 1, 32) << 4)


def _q6_k_values(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, :128], 64) | (_bits(blocks[:, 128:192], 2, 32) << 4)
    return values.view(np.int8) - np.int8(32)


def _q6_k_scales(blocks: np.ndarray) -> np.ndarray:
    return _half(208)(blocks).astype(np.float32) * blocks[:, 192:208].view(np.int8).astype(np.float32)


_INT4, _UINT4, _INT8, _UINT8 = ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8
_F16, _F32 = ir.DataType.FLOAT16, ir.DataType.FLOAT

FORMATS: dict[GgmlType, BlockFormat] = {
    GgmlType.Q4_0: BlockFormat(
        18, 32, _INT4, _F16, lambda b: _nibbles(b[:, 2:], 16).view(np.int8) - np.int8(8), _half(0)
    ),
    GgmlType.Q4_1: BlockFormat(20, 32, _UINT4, _F16, lambda b: _nibbles(b[:, 4:], 16), _half(0), _half(2)),
    GgmlType.Q5_0: BlockFormat(
        22,
        32,
        _INT8,
        _F16,
        lambda b: (_nibbles(b[:, 6:], 16) | _fifth_bits(b, 2)).view(np.int8) - np.int8(16),
        _half(0),
    ),
    GgmlType.Q5_1: BlockFormat(
        24, 32, _UINT8, _F16, lambda b: _nibbles(b[:, 8:], 16) | _fifth_bits(b, 4), _half(0), _half(2)
    ),
    GgmlType.Q8_0: BlockFormat(34, 32, _INT8, _F16, lambda b: b[:, 2:].view(np.int8), _half(0)),
    GgmlType.Q4_K: BlockFormat(144, 32, _UINT4, _F32, lambda b: _nibbles(b[:, 16:], 32), _k_scale, _k_minimum),
    GgmlType.Q5_K: BlockFormat(176, 32, _UINT8, _F32, _q5_k_values, _k_scale, _k_minimum),
    GgmlType.Q6_K: BlockFormat(210, 16, _INT8, _F32, _q6_k_values, _q6_k_scales),
}

_NUMPY = {
    _INT4: ml_dtypes.int4,
    _UINT4: ml_dtypes.uint4,
    _INT8: np.int8,
    _UINT8: np.uint8,
    _F16: np.float16,
    _F32: np.float32,
}


@dataclass(frozen=True, slots=True)
class BlockTensors:
    """A matrix in block-wise form, every part lazy; see ``add_blockwise`` for the shapes."""

    values: ir.LazyTensor
    scales: ir.LazyTensor
    minimum: ir.LazyTensor | None
    group: int


def block_tensors(rows: np.ndarray, kind: GgmlType, selected: np.ndarray | None = None) -> BlockTensors:
    """Take a matrix apart, reading the file only when a part is asked for.

    Args:
        rows: ``[N, bytes of a row]`` uint8, mapped.
        kind: A key of :data:`FORMATS`.
        selected: int64 ``[M]``, the rows wanted in their order; None for all as they are.
    """
    form = FORMATS[kind]
    count = len(rows) if selected is None else len(selected)
    columns = form.group * form.scales(np.zeros((1, form.bytes), np.uint8)).shape[1] * (rows.shape[1] // form.bytes)

    def lazy(part: Part, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        def load() -> ir.Tensor:
            chosen = rows if selected is None else rows[selected]
            return ir.Tensor(
                np.ascontiguousarray(part(chosen.reshape(-1, form.bytes)).reshape(shape)).astype(_NUMPY[dtype]), dtype
            )

        return ir.LazyTensor(load, dtype, ir.Shape(shape))

    return BlockTensors(
        values=lazy(form.values, form.dtype, (count, columns)),
        scales=lazy(form.scales, form.scale_dtype, (count, columns // form.group)),
        minimum=lazy(form.minimum, form.scale_dtype, (count, columns // form.group, 1)) if form.minimum else None,
        group=form.group,
    )
