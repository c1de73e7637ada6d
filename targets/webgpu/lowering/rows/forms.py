"""Weight matrices as kernels read them: values of 32 columns in whole ``vec4u``, then the scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.quantization.blockwise import BlockwiseWeight
from aicc.compiler.rows.matrix import Matrix, read_float, stored_float, stored_zero, unsigned
from aicc.targets.webgpu.lowering.text import filled, template

CHUNK = 32  # columns that a kernel takes at once; matrices are padded with zeros to a multiple of them
_FLOATS = {ir.DataType.FLOAT: "f32", ir.DataType.FLOAT16: "f16", ir.DataType.BFLOAT16: "bf16"}
_VECTORS = {"q4": 1, "q8": 2, "f16": 4, "bf16": 4, "f32": 8}  # vec4u of a chunk
_HALVES = {  # four weights of two words; bfloat16 is the upper half of float32
    "f16": "vec4f(unpack2x16float(first), unpack2x16float(second))",
    "bf16": "bitcast<vec4f>(vec4u(first << 16, first & 0xffff0000, second << 16, second & 0xffff0000))",
}


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix lies in memory.

    Attributes:
        values: ``q4``, ``q8``, ``f16``, ``bf16`` or ``f32``; a file in ``wgsl/`` reads each, one both halves.
        rows: Its rows.
        chunks: Chunks of 32 columns.
        groups: Scales of a row; 0 if it is not quantised.
        scales: Of what type they are: ``f16`` or ``f32``.
        zero: What is subtracted from a stored value before it is scaled, if there is no ``offset``.
        offset: Whether each scale has what is added after scaling beside it.
    """

    values: str
    rows: int
    chunks: int
    groups: int = 0
    scales: str = ""
    zero: int = 0
    offset: bool = False

    def text(self, n: int) -> str:
        """WGSL: ``chunk_n(row, chunk)`` of the matrix bound as ``matrix_n``."""
        lines = [f"const CHUNKS_{n} = {self.chunks}u;"]
        if self.groups:
            lines += [
                f"const SCALES_{n} = {4 * self.rows * self.chunks * _VECTORS[self.values]}u;",
                "",
                f"fn word_{n}(at: u32) -> u32 {{",
                f"    return matrix_{n}[(SCALES_{n} + at) / 4u][(SCALES_{n} + at) % 4u];",
                "}",
                "",
                f"fn scale_{n}(row: u32, chunk: u32) -> vec2f {{",
                f"    let at = row * {self.groups}u + chunk / {self.chunks // self.groups}u;",
                *(f"    {line}" for line in self._scale(n)),
                "}",
            ]
        if self.values in _HALVES:
            reader = filled(template("halves"), n=n, four=_HALVES[self.values])
        else:
            reader = filled(template(self.values), n=n)
        return "\n".join([*lines, "", reader])

    def _scale(self, n: int) -> list[str]:
        if self.offset:
            both = f"unpack2x16float(word_{n}(at))"
            if self.scales == "f32":
                both = f"vec2f(bitcast<f32>(word_{n}(2u * at)), bitcast<f32>(word_{n}(2u * at + 1u)))"
            return [f"return {both};"]
        one = f"unpack2x16float(word_{n}(at / 2u))[at % 2u]"
        if self.scales == "f32":
            one = f"bitcast<f32>(word_{n}(at))"
        return [f"let scale = {one};", f"return vec2f(scale, -{self.zero}.0 * scale);"]


def matrix_form(matrix: Matrix) -> Form:
    """The form of a matrix, from types and shapes alone."""
    chunks, weight = -(-matrix.columns // CHUNK), matrix.blockwise
    if weight is None:
        return Form(_FLOATS[stored_float(matrix.value).dtype], matrix.rows, chunks)
    zero = stored_zero(weight)
    offset = weight.offset != "none"
    exact = weight.minimum is not None and not zero  # other offsets are products, which half precision might round
    scales = "f16" if weight.scales.dtype == ir.DataType.FLOAT16 and (exact or not offset) else "f32"
    groups = matrix.columns // weight.group_size
    return Form("q4" if weight.bits == 4 else "q8", matrix.rows, chunks, groups, scales, zero, offset)


def pack_matrix(matrix: Matrix) -> bytes:
    """The bytes of a matrix, whose weights are read here."""
    form, weight = matrix_form(matrix), matrix.blockwise
    if weight is None:
        array = np.ascontiguousarray(read_float(matrix))
        return _padded(array.view(np.uint16) if form.values == "bf16" else array, form, 0).tobytes()
    chosen = slice(matrix.begin, matrix.begin + matrix.rows)
    integers = weight.values.const_value.numpy()[chosen]
    values = _padded(unsigned(integers, form.zero), form, form.zero)
    if form.values == "q4":
        values = values[:, 0::2] | values[:, 1::2] << 4
    scales = _scales(weight, chosen, form).tobytes()
    return values.tobytes() + scales + bytes(-len(scales) % 16)


def _padded(array: NDArray[np.generic], form: Form, fill: int) -> NDArray[np.generic]:
    missing = form.chunks * CHUNK - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=fill) if missing else array


def _scales(weight: BlockwiseWeight, chosen: slice, form: Form) -> NDArray[np.generic]:
    """``[rows, groups]`` of scales, or ``[rows, groups, 2]`` with what is added after scaling."""
    dtype = np.float16 if form.scales == "f16" else np.float32
    scales = weight.scales.const_value.numpy()[chosen]
    if not form.offset:
        return scales.astype(dtype)
    wide = scales.astype(np.float32)
    if weight.minimum is not None:
        offset = weight.minimum.const_value.numpy()[chosen].reshape(scales.shape).astype(np.float32)
    else:
        offset = -wide * weight.zero_points.const_value.numpy()[chosen].astype(np.float32)
    return np.stack([wide, offset - form.zero * wide], axis=-1).astype(dtype)
