"""Softmax on int8, by logarithms: TOSA has no division, and a reciprocal of each sum would need shifts of its own.

    d = x - max(x)              in steps of 2**-12, as all logarithms here
    y = exp(d - log(sum(exp(d))))

Both functions are TOSA's TABLE of 16 bits: 513 values with straight lines between them. ``exp`` is tabulated from
-16 to 0, below which no int8 result is left; ``log`` over all sums there can be, from 1 to the number of terms.
The result is within one step of the exact value's integer.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from aicc.targets.ethos_u.lowering.node import LAST, Node, Refused, moves
from aicc.targets.ethos_u.lowering.program import Op, ts

MOST_TERMS = 256  # with more, the lines of the logarithm are too far from it, and sums too large
STEP = 2.0**-12  # of logarithms
_TOP, _BOTTOM = 32767, -32768
_LINES = 128  # values of 16 bits between two entries of a table; its results are as many times finer
_ONE = _TOP * _LINES  # what stands for 1 in results of the tables


def exp_table() -> NDArray[np.int16]:
    """``exp`` of ``(i - 32767) * STEP`` for every 128th ``i``; 32767 stands for 1."""
    logarithms = (np.arange(_BOTTOM, _TOP + 2, _LINES) - _TOP) * STEP
    return np.minimum(np.rint(np.exp(logarithms) * _TOP), _TOP).astype(np.int16)


def log_table(terms: int) -> NDArray[np.int16]:
    """``log`` of sums from 1 (at -32768) to ``terms`` (at 32767); 32767 stands for the logarithm of ``terms``."""
    sums = 1 + np.arange(0, _TOP - _BOTTOM + 2, _LINES) * (terms - 1) / (_TOP - _BOTTOM)
    return np.minimum(np.rint(np.log(sums) / np.log(terms) * _TOP), _TOP).astype(np.int16)


def softmax(n: Node) -> None:
    """Softmax over any axis, which is brought to the end first."""
    value, rank = n.inputs[0], len(n.output.shape)
    axis = n.node.attributes.get_int("axis", -1) % rank
    place = LAST.index(axis) if rank == 4 else axis
    order = [other for other in range(rank) if other != place] + [place]
    count = value.shape[axis]
    if count > MOST_TERMS:
        raise Refused(f"it has {count} terms; up to {MOST_TERMS} are taken")
    if value.scale > 1 << 10:  # logarithms of 32 bits, and a difference of two
        raise Refused("its inputs are too large")
    shape = (prod(value.shape) // count, count)
    rows = n.reshaped(value, shape, order)
    result = _on_rows(n, rows, shape)
    moved = [value.stored[place] for place in order]
    if not moves(moved, back := [order.index(place) for place in range(rank)]):
        back, moved = [], list(n.output.stored)
    name = n.part() if back else n.output.name
    result = n.program.reshape(name, result, moved)
    if back:
        n.program.add(n.output.name, Op.TRANSPOSE, [result], n.output.stored, "int8", back)


def _on_rows(n: Node, rows: str, shape: tuple[int, int]) -> str:
    """Softmax of each row of an int8 matrix, in the output's scale."""
    program, sums_shape, terms = n.program, (shape[0], 1), max(shape[1], 2)

    def rescale(value: str, size: tuple[int, int], scale: float, before: str, after: str) -> str:
        return program.rescale(n.part(), value, size, [scale], (0, 0), (before, after))

    def shifted(value: str, size: tuple[int, int], offset: int) -> str:
        moved = program.add(n.part(), Op.ADD, [value, program.constant(np.array([[offset]], np.int32))], size, "int32")
        return rescale(moved, size, 1.0, "int32", "int16")  # which saturates

    def table(value: str, size: tuple[int, int], values: NDArray[np.int16]) -> str:
        return program.add(n.part(), Op.TABLE, [value, program.constant(values)], size, "int32")

    attributes = (1, ts.NanPropagationMode.PROPAGATE)
    largest = program.add(n.part(), Op.REDUCE_MAX, [rows], sums_shape, "int8", *attributes)
    wide = rescale(rows, shape, 1.0, "int8", "int32"), rescale(largest, sums_shape, 1.0, "int8", "int32")
    below = program.add(n.part(), Op.SUB, list(wide), shape, "int32")
    below = rescale(below, shape, n.inputs[0].scale / STEP, "int32", "int32")
    terms_of = table(shifted(below, shape, _TOP), shape, exp_table())
    sums = program.add(n.part(), Op.REDUCE_SUM, [terms_of], sums_shape, "int32", 1)
    step = (terms - 1) / (_TOP - _BOTTOM)  # of sums in their table
    scaled = rescale(sums, sums_shape, 1 / (_ONE * step), "int32", "int32")
    logarithm = table(shifted(scaled, sums_shape, _BOTTOM - round(1 / step)), sums_shape, log_table(terms))
    logarithm = rescale(logarithm, sums_shape, float(np.log(terms)) / (_ONE * STEP), "int32", "int32")
    chance = program.add(n.part(), Op.SUB, [below, logarithm], shape, "int32")
    chance = table(shifted(chance, shape, _TOP), shape, exp_table())
    factor = 1 / (_ONE * n.output.scale)
    return program.rescale(n.part(), chance, shape, [factor], (0, n.output.zero), ("int32", "int8"))
