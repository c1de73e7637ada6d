"""Weights in the kernels' layout (``kernels/panel.h``), one matrix in memory at a time."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from aicc.compiler.lowering import WeightStore
from aicc.compiler.rows import program as ops
from aicc.compiler.rows.matrix import Matrix, read_float, stored_float, unsigned
from aicc.compiler.rows.program import Angles, Program, Vector
from aicc.targets.cpu.lowering.formats import LANES, Form, align, matrix_form

_HEADER = struct.Struct("<8s8xQ40x")  # aicc_weights_header
_MAGIC = b"AICCWTS1"
_ELEMENTS_AT_ONCE = 1 << 20  # that are packed together, so that temporaries stay small


class Packer:
    """Puts constants into the artifact's weights file and remembers where they are.

    Args:
        store: The weights file; its first constant must be this family's header.
        identity: What tells these weights from others.
    """

    def __init__(self, store: WeightStore, identity: int) -> None:
        self._store = store
        self._placed: dict[tuple[object, int], int] = {}
        self.end = 0
        self.identity = identity
        self._add(_HEADER.pack(_MAGIC, identity))

    def matrix(self, matrix: Matrix, unit: int) -> int:
        """Offset of a matrix whose panels start anew every ``unit`` rows."""
        key = (matrix, unit if unit % LANES else 0)
        if key not in self._placed:
            self._placed[key] = self._add(pack_matrix(matrix, unit))
        return self._placed[key]

    def vector(self, vector: Vector) -> int:
        """Offset of a constant row, padded with zeros to whole vectors."""
        return self._once(vector, lambda: np.pad(vector.read(), (0, -vector.size % LANES)))

    def angles(self, angles: Angles) -> int:
        """Offset of cosines, with the sines of all positions after them."""
        return self._once(angles, angles.read)

    def _once(self, constant: object, read: Callable[[], NDArray[np.float32]]) -> int:
        if (constant, 0) not in self._placed:
            self._placed[constant, 0] = self._add(read().tobytes())
        return self._placed[constant, 0]

    def _add(self, data: bytes | memoryview) -> int:
        offset = self._store.add(data)
        self.end = max(self.end, align(offset + len(data)))
        return offset


def weights_identity(program: Program, source: str) -> int:
    """64 bits that differ where sources or the forms their weights are packed in differ.

    Args:
        program: The fused program.
        source: sha256 of the source's weight files.
    """
    digest = hashlib.sha256(source.encode())
    for op in program.ops:
        matrix = op.matrix if isinstance(op, ops.Linear) else op.table if isinstance(op, ops.Embed) else None
        if matrix is not None:
            digest.update(f"{matrix.value.name} {matrix.begin} {matrix.rows} {matrix_form(matrix)}\n".encode())
    return int.from_bytes(digest.digest()[:8], "little")


def pack_matrix(matrix: Matrix, unit: int = LANES) -> memoryview:
    """The panels of a matrix.

    Args:
        matrix: Which is read here.
        unit: Rows after which a new panel starts; those short of a panel are zeros.
    """
    form = matrix_form(matrix)
    unit = unit if unit % LANES else LANES
    panels = align(unit, LANES) // LANES  # of a unit
    out = np.zeros((-(-matrix.rows // unit) * panels, form.panel_bytes), np.uint8)
    streams = _streams(matrix, form)
    units = max(1, _ELEMENTS_AT_ONCE // (unit * form.k))
    for begin in range(0, matrix.rows, units * unit):
        packed = _packed([stream[begin : begin + units * unit] for stream in streams], form, unit)
        at = begin // unit * panels
        out[at : at + len(packed)] = packed
    return memoryview(out).cast("B")


def _streams(matrix: Matrix, form: Form) -> list[NDArray[np.generic]]:
    """What the panels of a matrix are made of, a row each of its rows: values, scales, minima."""
    if not form.quantised:
        return [_float_bits(matrix)]
    weight = matrix.blockwise
    chosen = slice(matrix.begin, matrix.begin + matrix.rows)
    values = weight.values.const_value.numpy()[chosen]
    scales = weight.scales.const_value.numpy()[chosen]
    streams = [values, scales]
    if weight.minimum is not None:
        streams.append(weight.minimum.const_value.numpy()[chosen].reshape(scales.shape))
    elif weight.zero_points is not None:
        zeros = weight.zero_points.const_value.numpy()[chosen].astype(np.float32)
        streams.append((-scales.astype(np.float32) * zeros).astype(scales.dtype))
    repeat = weight.group_size // form.group if matrix.columns == form.k else form.k // form.group
    return [values, *(np.repeat(stream, repeat, axis=1) for stream in streams[1:])]


def _packed(streams: list[NDArray[np.generic]], form: Form, unit: int) -> NDArray[np.uint8]:
    """Panels ``[panels, panel bytes]`` of whole units of rows."""
    if not form.quantised:
        return _joined(form, [_panels(streams[0], unit).transpose(0, 2, 1)])
    values = _pad(unsigned(streams[0], form.zero), form.k, form.zero)
    groups = [_panels(stream, unit).transpose(0, 2, 1) for stream in streams[1:]]
    return _joined(form, [_quads(_panels(values, unit, form.zero), form), *groups])


def _float_bits(matrix: Matrix) -> NDArray[np.generic]:
    array = read_float(matrix)
    return array.view(np.uint16) if stored_float(matrix.value).dtype.name == "BFLOAT16" else array


def _pad(array: NDArray, columns: int, fill: int) -> NDArray:
    missing = columns - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=fill) if missing else array


def _panels(array: NDArray, unit: int, fill: int = 0) -> NDArray:
    """``[N, C]`` → ``[panels, 16, C]``, rows missing in a panel filled up."""
    n, columns = array.shape
    units = -(-n // unit)
    if units * unit != n:
        array = np.pad(array, ((0, units * unit - n), (0, 0)), constant_values=fill)
    array = array.reshape(units, unit, columns)
    if unit % LANES:
        array = np.pad(array, ((0, 0), (0, -unit % LANES), (0, 0)), constant_values=fill)
    return array.reshape(-1, LANES, columns)


def _quads(panels: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    """Integers ``[panels, 16, k]`` as the bytes of each panel."""
    count = len(panels)
    if form.format == "Q8":
        return panels.reshape(count, LANES, form.k // 4, 4).transpose(0, 2, 1, 3)
    halves = panels.reshape(count, LANES, form.k // form.group, 2, form.group // 8, 4)
    return (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).transpose(0, 2, 3, 1, 4)


def _joined(form: Form, streams: list[NDArray]) -> NDArray[np.uint8]:
    """The streams of each panel one after another, each from a multiple of 64."""
    count = len(streams[0])
    out = np.zeros((count, form.panel_bytes), np.uint8)
    at = 0
    for stream in streams:
        data = np.ascontiguousarray(stream).reshape(count, -1).view(np.uint8)
        out[:, at : at + data.shape[1]] = data
        at += align(data.shape[1])
    return out
