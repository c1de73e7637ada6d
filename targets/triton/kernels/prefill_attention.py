"""Attention of many queries of a sequence: a tile of them at a time, over all keys before them."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.attention import attend, cap, keys_at
from aicc.targets.triton.kernels.columns import FIELDS, position_of


@triton.jit
def prefill_attention(
    queries, keys, values, batch, pages, tiles, result,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr, PAGE: tl.constexpr, TABLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The grid is ``[tiles, HEADS]``.

    Args:
        queries: float16 ``[tokens, HEADS * HEAD]``.
        keys: A layer's pages; those of the step's tokens are there already.
        values: The same.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        tiles: int32 ``[tiles, 2]``: the first row of each and the one after its last, of one sequence, at most
            ``BLOCK_M`` rows.
        result: ``[tokens, HEADS * HEAD]``.
        HEADS: As for ``decode_attention``, and so are the other constants.
        KV_HEADS: See there.
        HEAD: See there.
        SCALE: See there.
        SOFT_CAP: See there.
        WINDOW: See there.
        PAGE: See there.
        TABLE: See there.
        BLOCK_M: Queries of a tile.
        BLOCK_D: See there.
        BLOCK_N: Keys of a tile.
    """
    head = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    start = tl.load(tiles + tl.program_id(0) * 2)
    stop = tl.load(tiles + tl.program_id(0) * 2 + 1)
    token = start + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    there = (token < stop)[:, None] & (d < HEAD)[None, :]
    at = token[:, None] * (HEADS * HEAD) + head * HEAD + d[None, :]
    q = (tl.load(queries + at, mask=there, other=0.0).to(tl.float32) * SCALE).to(tl.float16)
    earliest = position_of(batch, start)
    position = earliest + tl.arange(0, BLOCK_M)
    end = earliest + stop - start
    table = pages + tl.load(batch + start * FIELDS + 2) * TABLE
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(earliest + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
    most = tl.full([BLOCK_M], -1.0e30, tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        where = keys_at(table, key, end, kv_head, KV_HEADS, HEAD, PAGE)
        k = tl.load(keys + where[None, :] + d[:, None], mask=(key < end)[None, :] & (d < HEAD)[:, None], other=0.0)
        v = tl.load(values + where[:, None] + d[None, :], mask=(key < end)[:, None] & (d < HEAD)[None, :], other=0.0)
        seen = key[None, :] <= position[:, None]
        if WINDOW > 0:
            seen &= key[None, :] > position[:, None] - WINDOW
        scores = cap(tl.dot(q, k), SOFT_CAP)
        acc, most, weight = attend(acc, most, weight, scores, seen, v)
    found = acc / tl.maximum(weight, 1.0e-30)[:, None]
    tl.store(result + at, found.to(result.dtype.element_ty), mask=there)
