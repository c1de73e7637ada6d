"""One row times a matrix: as fast as the weights come from memory."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.columns import evaluate, wanted_row
from aicc.targets.triton.kernels.weights import CHUNK, E4M3, ROOT, small_e4m3, unpack


@triton.jit
def _products(weight, scales, minima, rows, chunks, low, high, xsum, mask, FORM: tl.constexpr, K: tl.constexpr,
              ACROSS: tl.constexpr):  # fmt: skip
    """What some chunks of columns add to some rows, ``[rows, chunks]``; ``FORM`` as in :func:`matvec`."""
    bits: tl.constexpr = FORM[0]
    padded: tl.constexpr = (K + CHUNK - 1) // CHUNK * CHUNK if bits <= 8 else K
    stride: tl.constexpr = padded // 2 if bits == 4 else padded
    inside = tl.arange(0, ACROSS)[None, None, :]
    at = weight + rows[:, None, None] * stride + chunks[None, :, None] * ACROSS + inside
    if bits > 8:
        there = mask[:, :, None] & (chunks[None, :, None] * ACROSS + inside < K)
        values = tl.load(at, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32)
        result = tl.sum(values * low[None, :, :], axis=2)
    else:
        values = tl.load(at, mask=mask[:, :, None], other=0, cache_modifier=".cg")
        if bits == 4:
            first = unpack(values & 15, FORM[1])
            second = unpack(values >> 4, FORM[1])
            result = tl.sum(first * low[None, :, :] + second * high[None, :, :], axis=2)
        elif FORM[1] == E4M3:
            result = tl.sum(small_e4m3(values) * low[None, :, :], axis=2) * ROOT
        else:
            result = tl.sum(unpack(values, FORM[1]) * low[None, :, :], axis=2)
        columns: tl.constexpr = CHUNK if bits == 4 else ACROSS  # of a chunk of this loop
        group = rows[:, None] * (padded // FORM[2]) + chunks[None, :] * columns // FORM[2]
        result *= tl.load(scales + group, mask=mask, other=0.0).to(tl.float32)
        if FORM[3]:
            result += tl.load(minima + group, mask=mask, other=0.0).to(tl.float32) * xsum[None, :]
    return result


@triton.jit
def _columns(x, cols, K: tl.constexpr):
    return tl.load(x + cols, mask=cols < K, other=0.0).to(tl.float32)


@triton.jit
def matvec(
    pointers, batch, pages, x, gain, weight, scales, minima,
    K: tl.constexpr, N: tl.constexpr, COUNT: tl.constexpr, FORM: tl.constexpr, NORM: tl.constexpr,
    EPSILON: tl.constexpr, WANTED: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """``W · norm(x)`` and a program on the results; the grid is ``[N / BLOCK_N]``.

    Args:
        pointers: What the programs refer to.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        x: The row, of floats.
        gain: Of the RMS normalisation, ``[K]``.
        weight: ``[COUNT, N, K]``, floats or packed integers.
        scales: ``[COUNT, N, K / group]``.
        minima: The same; what an integer of 0 is.
        K: Columns.
        N: Rows.
        COUNT: Matrices whose rows are computed together, 1 or 2.
        FORM: ``(bits, zero, columns of a group, whether there are minima)``.
        NORM: Whether ``x`` is normalised first: its root mean square is found on the way.
        EPSILON: Of the normalisation.
        WANTED: Whether ``x`` is the row whose logits are wanted, not the first.
        SEGMENTS: ``(first row, row after the last, program)`` each; a program starts with ``COUNT`` values.
        BLOCK_N: Rows of a program.
        CHUNKS: Loads of 16 bytes that are made of a row at once.
        ACROSS: Elements of such a load.
    """
    bits: tl.constexpr = FORM[0]
    columns: tl.constexpr = 32 if bits == 4 else ACROSS  # of a load
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if WANTED:
        x += wanted_row(batch, 0) * K
    inside = tl.arange(0, ACROSS)[None, :]
    total = tl.zeros([BLOCK_N, CHUNKS], tl.float32)
    other = tl.zeros([BLOCK_N, CHUNKS], tl.float32)
    squares = tl.zeros([CHUNKS], tl.float32)
    for at in range(0, (K + columns - 1) // columns, CHUNKS):
        chunks = at + tl.arange(0, CHUNKS)
        cols = chunks[:, None] * columns + inside
        low = _columns(x, cols, K)
        high = low
        if bits == 4:
            high = _columns(x, cols + 16, K)
        if NORM:
            squares += tl.sum(low * low, axis=1)
            low *= _columns(gain, cols, K)
            if bits == 4:
                squares += tl.sum(high * high, axis=1)
                high *= _columns(gain, cols + 16, K)
        if FORM[1] == E4M3:
            low *= ROOT
        xsum = tl.sum(low + high if bits == 4 else low, axis=1)
        mask = (n < N)[:, None] & (chunks * columns < K)[None, :]
        total += _products(weight, scales, minima, n, chunks, low, high, xsum, mask, FORM, K, ACROSS)
        if COUNT == 2:
            other += _products(weight, scales, minima, n + N, chunks, low, high, xsum, mask, FORM, K, ACROSS)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + EPSILON)
    first = tl.sum(total, axis=1) * factor
    second = tl.sum(other, axis=1) * factor
    begin = tl.program_id(0) * BLOCK_N
    for i in tl.static_range(len(SEGMENTS)):
        if (begin + BLOCK_N > SEGMENTS[i][0]) & (begin < SEGMENTS[i][1]):
            values = (first, second) if COUNT == 2 else (first,)
            there = (n >= SEGMENTS[i][0]) & (n < SEGMENTS[i][1])
            cols = tl.maximum(n - SEGMENTS[i][0], 0)
            evaluate(values, pointers, batch, pages, SEGMENTS[i][2], 0, cols, there)
