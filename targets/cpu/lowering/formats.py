"""Weight matrices in the graph, and the form the kernels want each in (``kernels/panel.h``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.quantization.blockwise import BlockwiseWeight, match_blockwise

LANES = 16  # rows of a panel
_FLOATS = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}
BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8": 1.0, "Q4": 0.5, "NONE": 0.0}


@dataclass(frozen=True, slots=True)
class Form:
    """``aicc_weight``: how a matrix lies in memory; names without their ``AICC_``."""

    format: str
    k: int
    group: int = 0
    zero: int = 0
    scales: str = "NONE"
    minima: str = "NONE"

    @property
    def quantised(self) -> bool:
        """Whether it is multiplied with quantised rows."""
        return self.format in ("Q8", "Q4")

    @property
    def panel_bytes(self) -> int:
        """Bytes of 16 rows: values, scales, minima, each from a multiple of 64."""
        groups = self.k // self.group if self.group else 0
        streams = (self.k * BYTES[self.format], groups * BYTES[self.scales], groups * BYTES[self.minima])
        return sum(align(int(LANES * stream)) for stream in streams)

    @property
    def c_name(self) -> str:
        """Name of its constant in ``model.c``."""
        parts = [self.format, str(self.k)] + ([f"g{self.group}"] if self.group else [])
        parts += [kind for kind in (self.scales, self.minima) if kind != "NONE"]
        return "_".join(parts).lower()


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows ``begin … begin + rows`` of a weight of the graph, ``[N, K]``.

    Attributes:
        value: The graph's value, of shape ``[N, K]``, or ``[K, N]`` if ``transposed``.
        rows: Rows used.
        columns: K.
        begin: First row used.
        transposed: Whether the value is stored with its rows as columns.
    """

    value: ir.Value
    rows: int
    columns: int
    begin: int = 0
    transposed: bool = False

    def part(self, begin: int, rows: int) -> Matrix:
        """Some of its rows."""
        return replace(self, begin=self.begin + begin, rows=rows)

    @property
    def blockwise(self) -> BlockwiseWeight | None:
        """Its stored form, if it is quantised."""
        return match_blockwise(self.value)

    @property
    def form(self) -> Form:
        """The kernels' form of it, from types and shapes alone."""
        weight = self.blockwise
        if weight is None:
            return Form(_FLOATS[stored_float(self.value).dtype], self.columns)
        group, k = pack_group(weight.group_size, self.columns)
        scales = _FLOATS[weight.scales.dtype]
        minima = scales if weight.offset != "none" else "NONE"
        return Form("Q4" if weight.bits == 4 else "Q8", k, group, stored_zero(weight), scales, minima)


def pack_group(group: int, columns: int) -> tuple[int, int]:
    """Group size and padded columns for a weight whose scales are shared by ``group`` columns.

    Larger groups are cut, their scales repeated: activations are quantised 128 at a time at most.
    """
    for size in (128, 64, 32):
        if group % size == 0:
            return size, columns
    return 32, -(-columns // 32) * 32  # whole rows of an odd length: one scale for all, so any cut will do


def stored_zero(weight: BlockwiseWeight) -> int:
    """What is added to the stored integers to make them unsigned."""
    return {ir.DataType.INT4: 8, ir.DataType.INT8: 128}.get(weight.values.dtype, 0)


def stored_float(value: ir.Value) -> ir.Value:
    """The initializer behind a float matrix: itself, or what its ``Cast`` widens."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Cast" else value


def read_float(matrix: Matrix) -> NDArray[np.generic]:
    """The rows of a float matrix, in the type they are stored in."""
    array = stored_float(matrix.value).const_value.numpy()
    array = array.T if matrix.transposed else array
    return array[matrix.begin : matrix.begin + matrix.rows]


def align(size: int, to: int = 64) -> int:
    """The next multiple."""
    return -(-size // to) * to
