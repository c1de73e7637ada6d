"""Weight matrices of a row program, as the graph holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.quantization.blockwise import BlockwiseWeight, match_blockwise


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


def stored_float(value: ir.Value) -> ir.Value:
    """The initializer behind a float matrix: itself, or what its ``Cast`` widens."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Cast" else value


def read_float(matrix: Matrix) -> NDArray[np.generic]:
    """The rows of a float matrix, in the type they are stored in."""
    array = stored_float(matrix.value).const_value.numpy()
    array = array.T if matrix.transposed else array
    return array[matrix.begin : matrix.begin + matrix.rows]


def stored_zero(weight: BlockwiseWeight) -> int:
    """What is added to the integers of a quantised weight, so that they are stored without a sign."""
    return {ir.DataType.INT4: 8, ir.DataType.INT8: 128}.get(weight.values.dtype, 0)


def unsigned(integers: NDArray[np.generic], zero: int) -> NDArray[np.uint8]:
    """Integers plus :func:`stored_zero`; the sum wraps around in 8 bits to where it should be."""
    return integers.astype(np.int8 if zero else np.uint8).view(np.uint8) + np.uint8(zero)
