"""Rows times a matrix: tiles of the matrix units, weights made floats in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.columns import evaluate
from aicc.targets.triton.kernels.weights import CHUNK, unpack


@triton.jit
def _spread(groups, n, at, N, GROUP: tl.constexpr, PER_ROW: tl.constexpr, ACROSS: tl.constexpr,
            BLOCK_N: tl.constexpr, PIECES: tl.constexpr):  # fmt: skip
    """A number a group, ``[N, PER_ROW]``, as one for each of ``PIECES`` times ``ACROSS`` elements."""
    column = at + tl.arange(0, PIECES) * CHUNK
    found = tl.load(groups + n[:, None] * PER_ROW + (column // GROUP)[None, :],
                    mask=(n < N)[:, None] & (column // GROUP < PER_ROW)[None, :], other=0.0).to(tl.float32)  # fmt: skip
    return tl.reshape(tl.broadcast_to(found[:, :, None], [BLOCK_N, PIECES, ACROSS]), [BLOCK_N, PIECES * ACROSS])


@triton.jit
def _add_tile(acc, weight, scales, minima, x, n, limit, m, tokens, k, FORM: tl.constexpr, K: tl.constexpr,
              BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """``acc + W[n, k:k + BLOCK_K] · x[m, k:k + BLOCK_K]ᵀ``."""
    bits: tl.constexpr = FORM[0]
    rows = (m < tokens)[None, :]
    if bits > 8:
        cols = k + tl.arange(0, BLOCK_K)
        there = (n < limit)[:, None] & (cols < K)[None, :]
        w = tl.load(weight + n[:, None] * K + cols[None, :], mask=there, other=0.0).to(COMPUTE)
        xs = tl.load(x + m[None, :] * K + cols[:, None], mask=rows & (cols < K)[:, None], other=0.0).to(COMPUTE)
        acc = tl.dot(w, xs, acc)
    else:
        padded: tl.constexpr = (K + CHUNK - 1) // CHUNK * CHUNK
        pieces: tl.constexpr = BLOCK_K // CHUNK
        across: tl.constexpr = 16 if bits == 4 else CHUNK
        s = _spread(scales, n, k, limit, FORM[2], padded // FORM[2], across, BLOCK_N, pieces)
        if FORM[3]:
            least = _spread(minima, n, k, limit, FORM[2], padded // FORM[2], across, BLOCK_N, pieces)
        else:
            least = 0.0
        element = tl.arange(0, pieces * across)
        cols = k + element // across * CHUNK + element % across
        stride: tl.constexpr = padded * bits // 8
        at = weight + n[:, None] * stride + (k * bits // 8 + element)[None, :]
        packed = tl.load(at, mask=(n < limit)[:, None] & (cols < padded)[None, :], other=0)
        xs = tl.load(x + m[None, :] * K + cols[:, None], mask=rows & (cols < K)[:, None], other=0.0).to(COMPUTE)
        if bits == 4:
            acc = tl.dot((unpack(packed & 15, FORM[1]) * s + least).to(COMPUTE), xs, acc)
            cols += 16
            xs = tl.load(x + m[None, :] * K + cols[:, None], mask=rows & (cols < K)[:, None], other=0.0).to(COMPUTE)
            acc = tl.dot((unpack(packed >> 4, FORM[1]) * s + least).to(COMPUTE), xs, acc)
        else:
            acc = tl.dot((unpack(packed, FORM[1]) * s + least).to(COMPUTE), xs, acc)
    return acc


@triton.jit
def matmul(
    pointers, batch, pages, x, weight, scales, minima, partial, arrived, tokens,
    K: tl.constexpr, N: tl.constexpr, COUNT: tl.constexpr, FORM: tl.constexpr, SEGMENTS: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """``x Wᵀ`` and a program on the results; the grid is ``[N / BLOCK_N, tokens / BLOCK_M, SPLITS]``.

    Where there are too few tiles for the chip, programs share a tile's columns; the one that finishes last adds
    up what all of them found, in their order, so that results do not depend on which it was.

    Args:
        pointers: What the programs refer to.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        x: ``[tokens, K]``.
        weight: As for ``matvec``.
        scales: The same.
        minima: The same.
        partial: float32 ``[SPLITS, COUNT, N, tokens]``, between programs.
        arrived: int32, one for each tile, 0 before and after.
        tokens: Rows of ``x``.
        K: Columns.
        N: Rows of a matrix.
        COUNT: Matrices whose rows are computed together, 1 or 2.
        FORM: As for ``matvec``.
        SEGMENTS: As for ``matvec``.
        SPLITS: Programs that share a tile.
        BLOCK_M: Rows of ``x`` in a tile.
        BLOCK_N: Rows of the matrix in a tile.
        BLOCK_K: Columns in a tile, whole chunks.
        BF16: Whether tiles are bfloat16, not float16.
    """
    compute: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    share: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K  # columns of a split
    begin = tl.program_id(2) * share
    for k in range(begin, min(begin + share, K), BLOCK_K):
        first = _add_tile(first, weight, scales, minima, x, n, N, m, tokens, k, FORM, K, BLOCK_N, BLOCK_K, compute)
        if COUNT == 2:
            second = _add_tile(second, weight, scales, minima, x, n + N, 2 * N, m, tokens, k, FORM, K, BLOCK_N,
                               BLOCK_K, compute)  # fmt: skip
    last = True
    if SPLITS > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        size = N * tokens
        at = partial + n[:, None] * tokens + m[None, :]
        there = (n < N)[:, None] & (m < tokens)[None, :]
        tl.store(at + tl.program_id(2) * COUNT * size, first, mask=there)
        if COUNT == 2:
            tl.store(at + (tl.program_id(2) * COUNT + 1) * size, second, mask=there)
        tl.debug_barrier()  # what all threads wrote is there before the count says so
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            first = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            second = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for split in range(SPLITS):
                first += tl.load(at + split * COUNT * size, mask=there, other=0.0, cache_modifier=".cg")
                if COUNT == 2:
                    second += tl.load(at + (split * COUNT + 1) * size, mask=there, other=0.0, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if last:
        first_row = tl.program_id(0) * BLOCK_N
        for i in tl.static_range(len(SEGMENTS)):
            if (first_row + BLOCK_N > SEGMENTS[i][0]) & (first_row < SEGMENTS[i][1]):
                values = (first, second) if COUNT == 2 else (first,)
                there = ((n >= SEGMENTS[i][0]) & (n < SEGMENTS[i][1]))[:, None] & (m < tokens)[None, :]
                cols = tl.maximum(n - SEGMENTS[i][0], 0)[:, None]
                evaluate(values, pointers, batch, pages, SEGMENTS[i][2], m[None, :], cols, there)
