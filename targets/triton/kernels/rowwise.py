"""Rows, or the heads of rows, each by a program of its own."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.columns import evaluate


@triton.jit
def rowwise(pointers, batch, pages, WIDTH: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr):
    """Run a program on each piece of each row; the grid is ``[rows, pieces]``.

    Args:
        pointers: What the programs refer to.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        WIDTH: Columns of a piece.
        SEGMENTS: ``(first piece, piece after the last, program)`` each, columns counted from the first piece.
        BLOCK: The power of two that is no less than ``WIDTH``.
    """
    row = tl.program_id(0)
    piece = tl.program_id(1)
    within = tl.arange(0, BLOCK)
    for i in tl.static_range(len(SEGMENTS)):
        if (piece >= SEGMENTS[i][0]) & (piece < SEGMENTS[i][1]):
            cols = (piece - SEGMENTS[i][0]) * WIDTH + within
            evaluate((), pointers, batch, pages, SEGMENTS[i][2], row, cols, within < WIDTH)
