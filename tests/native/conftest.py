from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_int32, c_size_t, c_ssize_t

import numpy as np
import pytest
from native_build import HERE, ISAS, build, emulator
from native_model import address, aligned
from numpy.typing import NDArray
from packing import Form, pack
from remote import RemoteLibrary

ACCELERATED = [isa for isa in ISAS if isa != "portable"]


# What takes an emulator minutes is left to `make test-full`: attention has no code of an instruction set's own.
LONG = ("aarch64-portable", "riscv64-portable", "riscv64 of 512 bits")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        isa = next((parameters[name] for name in ("kernels", "accelerated", "attending") if name in parameters), None)
        if isa in LONG or (isa and ISAS[isa].emulator and "attending" in parameters):
            item.add_marker(pytest.mark.full)


class Kernels:
    """One instruction set's kernels, on numpy arrays."""

    def __init__(self, isa: str, attention: bool = False):
        defines = ("WITH_ATTENTION",) if attention else ()
        self.lib: ctypes.CDLL | RemoteLibrary
        if command := ISAS[isa].emulator:
            self.lib = RemoteLibrary((str(emulator(command[0])), *command[1:]), build(HERE / "remote.c", isa, defines))
        else:
            self.lib = ctypes.CDLL(str(build(HERE / "kernels.c", isa, defines)))
            self.lib.panel_bytes.restype = self.lib.row_bytes.restype = c_size_t
        name = np.zeros(16, np.uint8)
        self.lib.isa(address(name))
        self.isa = bytes(name).rstrip(b"\0").decode()
        self.forms = [Form() for _ in range(self.lib.form_count())]
        for index, form in enumerate(self.forms):
            self.lib.form_at(index, byref(form))

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

    def round(self, x: NDArray[np.float32], k: int) -> NDArray[np.uint8]:
        """Rows of a prompt `[rows, bytes]`, in tiles of bfloat16, of float rows, zeros added up to k."""
        stride = -(-2 * k // 64) * 64 + 64
        memory = aligned(len(x) * stride)
        memory[:] = 0xFF
        x = np.ascontiguousarray(x)
        arguments = (c_int32(len(x)), k, address(x), x.shape[1])
        self.lib.round_rows(address(memory), c_ssize_t(stride), *arguments)
        return memory.reshape(len(x), stride)

    def linear_prompt(self, x: NDArray[np.uint8], weights: NDArray[np.uint8], form: Form, units: int = 1) -> NDArray:
        """`[rows, 16 * panels]` for a prompt's rows, of which there are at most 256, and packed panels, in `units`."""
        panels = len(weights) // self.lib.panel_bytes(byref(form)) // units
        y = np.full((units * 256, panels * 16 + 3), np.nan, np.float32)
        spread = aligned(2 * 2 * 16 * max(768, form.group))
        stride, width, count = c_ssize_t(x.strides[0]), c_ssize_t(y.shape[1]), c_int32(len(x))
        arguments = (address(y), width, address(x), stride, count, address(weights), c_int32(units), c_int32(panels))
        assert self.lib.linear_prompt(*arguments, byref(form), address(spread)) == 0
        y = y.reshape(units, 256, -1)
        assert np.isnan(y[:, :, panels * 16 :]).all(), "wrote past its columns"
        assert np.isnan(y[:, len(x) :]).all(), "wrote past its rows"
        return y[:, : len(x), : panels * 16].swapaxes(0, 1).reshape(len(x), -1)

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


@pytest.fixture(scope="session", params=ISAS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    yield from runnable(request.param)


@pytest.fixture(scope="session", params=[name for name, isa in ISAS.items() if isa.name != "amx"])
def attending(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The same, attention too, which has no use for tiles."""
    yield from runnable(request.param, attention=True)


@pytest.fixture(scope="session", params=[name for name, isa in ISAS.items() if isa.name == "amx"])
def prompting(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Those that have products of their own for prompts, with attention."""
    yield from runnable(request.param, attention=True)


@pytest.fixture(scope="session", params=ACCELERATED)
def accelerated(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    yield from runnable(request.param)


def runnable(isa: str, attention: bool = False) -> Iterator[Kernels]:
    if missing := ISAS[isa].missing():
        pytest.skip(f"this machine cannot run {isa}: {missing}")
    made = Kernels(isa, attention)
    assert made.isa == ISAS[isa].name
    yield made
    if isinstance(made.lib, RemoteLibrary):
        made.lib.close()
