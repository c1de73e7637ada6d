"""The form the kernels want each weight matrix in (``kernels/panel.h``)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from aicc.compiler.rows.matrix import Matrix, stored_float, stored_zero

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


def matrix_form(matrix: Matrix) -> Form:
    """The kernels' form of a matrix, from types and shapes alone."""
    weight = matrix.blockwise
    if weight is None:
        return Form(_FLOATS[stored_float(matrix.value).dtype], matrix.columns)
    group, k = pack_group(weight.group_size, matrix.columns)
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


def align(size: int, to: int = 64) -> int:
    """The next multiple."""
    return -(-size // to) * to
