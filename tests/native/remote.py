"""A library of another processor, run by an emulator: called as ctypes would call it."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from native_model import Address
from numpy.typing import NDArray

_WORDS = 16


class RemoteLibrary:
    """The functions of remote.c, in a process of their own."""

    def __init__(self, emulator: tuple[str, ...], program: Path):
        self._process = subprocess.Popen([*emulator, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: self._call(name, *arguments)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def _call(self, name: str, *arguments: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words, buffers = [], []
        for argument in arguments:
            buffer = _buffer(argument)
            words += [0 if buffer is not None else _integer(argument), -1 if buffer is None else buffer.nbytes]
            buffers += [] if buffer is None else [buffer]
        words += [0, -1] * (_WORDS - len(arguments))
        self._process.stdin.write(struct.pack(f"<16s{2 * _WORDS}q", name.encode(), *words))
        for buffer in buffers:
            self._process.stdin.write(buffer.tobytes())
        self._process.stdin.flush()
        result = struct.unpack("<q", self._read(8))[0]
        for buffer in buffers:
            buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._read(buffer.nbytes), np.uint8)
        return int(result)

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        assert len(data) == count, f"the emulated program ended with {self._process.wait(timeout=60)}"
        return data


def _buffer(argument: object) -> NDArray | None:
    if isinstance(argument, Address):
        return argument.array
    if hasattr(argument, "_obj"):  # byref
        return np.frombuffer(argument._obj, np.uint8)
    return None


def _integer(argument: object) -> int:
    if isinstance(argument, ctypes._SimpleCData):
        argument = argument.value
    return 0 if argument is None else int(argument)
