"""Weights in panels (kernels/panel.h), by the plainest numpy: a second opinion on the compiler's packing."""

from __future__ import annotations

from ctypes import Structure, c_int32

import numpy as np
from native_model import aligned
from numpy.typing import NDArray

NONE, F32, F16, BF16, Q8, Q4 = 0, 1, 2, 3, 6, 7


class Form(Structure):
    """aicc_weight."""

    _fields_ = tuple((name, c_int32) for name in ("format", "k", "group", "zero", "scales", "minima"))

    @property
    def quantised(self) -> bool:
        return self.format in (Q4, Q8)

    def __repr__(self) -> str:
        return "Form(" + ", ".join(f"{name}={getattr(self, name)}" for name, _ in self._fields_) + ")"

    def with_k(self, k: int) -> Form:
        return Form(self.format, k, self.group, self.zero, self.scales, self.minima)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def floats(values: NDArray, kind: int) -> bytes:
    if kind == BF16:
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if kind == F16 else np.float32).tobytes()


def pack(
    form: Form, values: NDArray, scales: NDArray | None = None, minima: NDArray | None = None
) -> NDArray[np.uint8]:
    """Panels of values `[n, k]` (stored integers, or floats) with scales and minima `[n, k / group]`."""
    data = b""
    for start in range(0, len(values), 16):
        rows = values[start : start + 16]
        if not form.quantised:
            data += padded(floats(rows.T, form.format))
            continue
        quads = rows.reshape(16, form.k // 4, 4).transpose(1, 0, 2).astype(np.uint8)  # [k / 4][16][4]
        if form.format == Q4:
            groups = quads.reshape(form.k // form.group, 2, form.group // 8, 16, 4)
            quads = groups[:, 0] | groups[:, 1] << 4
        data += padded(quads.tobytes()) + padded(floats(scales[start : start + 16].T, form.scales))
        if form.minima:
            data += padded(floats(minima[start : start + 16].T, form.minima))
    packed = aligned(len(data))
    packed[:] = np.frombuffer(data, np.uint8)
    return packed
