from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_size_t, c_ssize_t

import numpy as np
import pytest
from native_build import HERE, ISA_NEEDS, build, missing_features
from native_model import address, aligned
from numpy.typing import NDArray
from packing import Form, pack

ACCELERATED = [isa for isa in ISA_NEEDS if isa != "portable"]


class Kernels:
    """One instruction set's kernels, on numpy arrays."""

    def __init__(self, isa: str):
        self.lib = ctypes.CDLL(str(build(HERE / "kernels.c", isa)))
        self.lib.form_at.restype = Form
        self.lib.panel_bytes.restype = self.lib.row_bytes.restype = c_size_t
        self.lib.isa.restype = ctypes.c_char_p
        self.isa = self.lib.isa().decode()

    def forms(self) -> list[Form]:
        return [self.lib.form_at(index) for index in range(self.lib.form_count())]

    def quantise(self, x: NDArray[np.float32], k: int, group: int, parts: int = 1) -> NDArray[np.uint8]:
        """Rows of records `[rows, bytes]` of float rows, zeros added up to k."""
        size = parts * self.lib.row_bytes(k, group)
        records = aligned(len(x) * size).reshape(len(x), size)
        records[:] = 0xA5
        for record, row in zip(records, np.ascontiguousarray(x), strict=True):
            self.lib.quantise_row(address(record), k, group, parts, address(row), len(row))
        return records

    def linear(self, x: NDArray, weights: NDArray[np.uint8], form: Form, parts: int = 1) -> NDArray[np.float32]:
        """`[rows, 16 * panels]` for rows of records (or float rows) and packed panels."""
        panels = len(weights) // self.lib.panel_bytes(byref(form))
        y = np.full((len(x), panels * 16 + 3), np.nan, np.float32)
        stride = c_ssize_t(x.strides[0])
        arguments = (address(y), c_ssize_t(y.shape[1]), address(x), stride, c_int32(len(x)), c_int32(parts))
        assert self.lib.linear(*arguments, address(weights), c_int32(panels), byref(form)) == 0
        assert np.isnan(y[:, panels * 16 :]).all(), "wrote past its columns"
        return y[:, : panels * 16]

    def gather(self, weights: NDArray[np.uint8], row: int, form: Form) -> NDArray[np.float32]:
        y = np.empty(form.k, np.float32)
        self.lib.gather_row(address(y), address(weights), row, byref(form))
        return y

    def pack(self, *arguments) -> NDArray[np.uint8]:
        packed = pack(*arguments)
        form = arguments[0]
        assert len(packed) % self.lib.panel_bytes(byref(form)) == 0
        return packed

    def of(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        getattr(self.lib, f"{name}_of")(address(y), address(x), c_size_t(x.size))
        return y


@pytest.fixture(scope="session")
def portable() -> Kernels:
    return Kernels("portable")


@pytest.fixture(scope="session", params=["portable", *ACCELERATED])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return runnable(request.param)


@pytest.fixture(scope="session", params=ACCELERATED)
def accelerated(request: pytest.FixtureRequest) -> Kernels:
    return runnable(request.param)


def runnable(isa: str) -> Kernels:
    if missing := missing_features(isa):
        pytest.skip(f"this machine cannot run {isa}: its processor lacks {', '.join(missing)}")
    made = Kernels(isa)
    assert made.isa == isa
    return made
