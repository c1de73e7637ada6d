"""Weights in the kernels' layout (``kernels/weights.py``), the matrices of one launch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.lowering import WeightStore
from aicc.compiler.rows.matrix import Matrix, read_float, stored_float, stored_zero, unsigned
from aicc.compiler.rows.program import Angles, Vector
from aicc.targets.triton.plan import WEIGHTS, Argument

CHUNK = 32
_FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_E4M3 = -1  # as kernels/weights.py has it
_E4M3_SCALE = 256  # what float8 made of float16's parts lacks
Order = NDArray[np.int64] | None  # which of its rows stands where; None if they are in order


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix lies in memory.

    Attributes:
        bits: Of a weight.
        dtype: Triton's name of the stored type.
        zero: What is subtracted from an integer; -1 says that it is a float8.
        group: Columns that share a scale.
        scales: Triton's name of the type of scales; that of the weights if there are none.
        minima: Whether there are minima.
    """

    bits: int
    dtype: str
    zero: int = 0
    group: int = 0
    scales: str = ""
    minima: bool = False

    @property
    def constants(self) -> tuple[int, int, int, bool]:
        """What kernels call it."""
        return self.bits, self.zero, self.group, self.minima

    @property
    def columns_of_load(self) -> int:
        """Columns in 16 bytes."""
        return 128 // self.bits

    @property
    def elements_of_load(self) -> int:
        """Elements in memory of 16 bytes."""
        return min(self.columns_of_load, 16)


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the matrices of a launch are."""

    form: Form
    weight: Argument
    scales: Argument
    minima: Argument


def matrix_form(matrix: Matrix) -> Form:
    """The form of a matrix, from types and shapes alone."""
    weight = matrix.blockwise
    if weight is None:
        dtype = _FLOATS[stored_float(matrix.value).dtype]
        return Form(32 if dtype == "fp32" else 16, dtype, scales=dtype)
    padded = -(-matrix.columns // CHUNK) * CHUNK
    group = padded if weight.group_size == matrix.columns else weight.group_size
    zero = _E4M3 if weight.values.dtype == ir.DataType.FLOAT8E4M3FN else stored_zero(weight)
    scales = "fp32" if zero == _E4M3 else _FLOATS[weight.scales.dtype]
    return Form(weight.bits, "u8", zero, group, scales, weight.offset != "none")


class Packer:
    """Puts constants into the artifact's weights file and remembers where they are."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._placed: dict[object, Argument] = {}
        self._matrices: dict[object, Packed] = {}
        self.end = 0

    def matrices(self, matrices: Sequence[Matrix], orders: Sequence[Order]) -> Packed:
        """Matrices of one form and width below each other."""
        key = tuple((m, None if o is None else o.tobytes()) for m, o in zip(matrices, orders, strict=True))
        if key not in self._matrices:
            form = matrix_form(matrices[0])
            parts = [_streams(m, form, o) for m, o in zip(matrices, orders, strict=True)]
            placed = [self._add(np.concatenate(stream).tobytes()) for stream in zip(*parts, strict=True)]
            weight, scales, minima = (*placed, *placed[:1] * 3)[:3]
            self._matrices[key] = Packed(form, weight, scales, minima)
        return self._matrices[key]

    def vector(self, vector: Vector, order: Order) -> Argument:
        """A constant row."""
        chosen = slice(None) if order is None else order[: vector.size]  # or of each head
        key = (vector, None if order is None else order.tobytes())
        return self._once(key, lambda: vector.read()[chosen])

    def angles(self, angles: Angles) -> Argument:
        """Cosines, with the sines of all positions after them."""
        return self._once(angles, angles.read)

    def _once(self, key: object, read: Callable[[], NDArray[np.float32]]) -> Argument:
        if key not in self._placed:
            self._placed[key] = self._add(np.ascontiguousarray(read(), np.float32).tobytes())
        return self._placed[key]

    def _add(self, data: bytes) -> Argument:
        offset = self._store.add(data)
        self.end = max(self.end, offset + len(data))
        return Argument(WEIGHTS, offset)


def _streams(matrix: Matrix, form: Form, order: Order) -> list[NDArray[np.generic]]:
    """Values, scales and minima of a matrix, a row each of its rows."""
    chosen = slice(None) if order is None else order
    weight = matrix.blockwise
    if weight is None:
        array = read_float(matrix)[chosen]
        return [array.view(np.uint16) if form.dtype == "bf16" else array]
    rows = slice(matrix.begin, matrix.begin + matrix.rows)
    values = weight.values.const_value.numpy()[rows][chosen]
    scales = weight.scales.const_value.numpy()[rows][chosen]
    if form.zero == _E4M3:
        scales = scales.astype(np.float32) * _E4M3_SCALE
    streams: list[NDArray[np.generic]] = [pack_integers(values, form), scales]
    if weight.minimum is not None:
        streams.append(weight.minimum.const_value.numpy()[rows][chosen].reshape(scales.shape))
    elif weight.zero_points is not None:
        zeros = weight.zero_points.const_value.numpy()[rows][chosen].astype(np.float32)
        streams.append((-scales.astype(np.float32) * zeros).astype(scales.dtype))
    return streams


def pack_integers(values: NDArray[np.generic], form: Form) -> NDArray[np.uint8]:
    """Integers or float8 ``[N, K]`` as bytes, rows padded to whole chunks."""
    zero = max(0, form.zero)
    packed = np.ascontiguousarray(values).view(np.uint8) if form.zero == _E4M3 else unsigned(values, zero)
    if missing := -packed.shape[1] % CHUNK:
        packed = np.pad(packed, ((0, 0), (0, missing)), constant_values=zero)
    if form.bits == 8:
        return packed
    halves = packed.reshape(len(packed), -1, 2, CHUNK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(packed), -1)
