"""Attention of single queries: each program takes a part of the keys of one head of keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.attention import attend, cap, keys_at
from aicc.targets.triton.kernels.columns import FIELDS, position_of


@triton.jit
def decode_attention(
    queries, keys, values, batch, pages, result, partial, arrived,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr, PAGE: tl.constexpr, TABLE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The grid is ``[tokens, KV_HEADS, SPLITS]``; the last program of a token and head adds the parts up.

    Args:
        queries: float16 ``[tokens, HEADS * HEAD]``.
        keys: A layer's pages.
        values: The same.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        result: ``[tokens, HEADS * HEAD]``.
        partial: float32 ``[tokens, KV_HEADS, SPLITS, BLOCK_H, BLOCK_D + 2]``, between programs.
        arrived: int32 ``[tokens, KV_HEADS]``, 0 before and after.
        HEADS: Of queries.
        KV_HEADS: Of keys and values.
        HEAD: Columns of a head.
        SCALE: Of products.
        SOFT_CAP: Products stay below it; 0 if they need not.
        WINDOW: Keys that a query sees; 0 if all before it.
        PAGE: Tokens of a page.
        TABLE: Pages of a sequence, at most.
        SPLITS: Parts of the keys.
        BLOCK_H: Power of two that is no less than ``HEADS / KV_HEADS``, and 16.
        BLOCK_D: Power of two that is no less than ``HEAD``.
        BLOCK_N: Keys of a tile.
    """
    per_kv: tl.constexpr = HEADS // KV_HEADS
    token = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    h = tl.arange(0, BLOCK_H)
    there = (h < per_kv)[:, None] & (d < HEAD)[None, :]
    at = (token * HEADS + kv_head * per_kv + h)[:, None] * HEAD + d[None, :]
    q = (tl.load(queries + at, mask=there, other=0.0).to(tl.float32) * SCALE).to(tl.float16)
    position = position_of(batch, token)
    table = pages + tl.load(batch + token * FIELDS + 2) * TABLE
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position + 1 - WINDOW, 0)
    share = (position + 1 - begin + SPLITS * BLOCK_N - 1) // (SPLITS * BLOCK_N) * BLOCK_N
    begin += split * share
    end = tl.minimum(begin + share, position + 1)
    most = tl.full([BLOCK_H], -1.0e30, tl.float32)
    weight = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        where = keys_at(table, key, end, kv_head, KV_HEADS, HEAD, PAGE)
        seen = (key < end)[None, :]
        k = tl.load(keys + where[None, :] + d[:, None], mask=seen & (d < HEAD)[:, None], other=0.0)
        v = tl.load(values + where[:, None] + d[None, :], mask=(key < end)[:, None] & (d < HEAD)[None, :], other=0.0)
        scores = cap(tl.dot(q, k), SOFT_CAP)
        acc, most, weight = attend(acc, most, weight, scores, seen, v)
    if SPLITS > 1:
        group = token * KV_HEADS + kv_head
        size: tl.constexpr = BLOCK_H * (BLOCK_D + 2)
        mine = partial + (group * SPLITS + split) * size
        in_acc = h[:, None] * BLOCK_D + d[None, :]
        tl.store(mine + in_acc, acc)
        tl.store(mine + BLOCK_H * BLOCK_D + h, most)
        tl.store(mine + BLOCK_H * (BLOCK_D + 1) + h, weight)
        tl.debug_barrier()  # what all threads wrote is there before the count says so
        if tl.atomic_add(arrived + group, 1, sem="acq_rel") == SPLITS - 1:
            most = tl.full([BLOCK_H], -1.0e30, tl.float32)
            weight = tl.zeros([BLOCK_H], tl.float32)
            acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
            for part in range(SPLITS):
                other = partial + (group * SPLITS + part) * size
                its_most = tl.load(other + BLOCK_H * BLOCK_D + h, cache_modifier=".cg")
                new = tl.maximum(most, its_most)
                mine_by, its_by = tl.exp(most - new), tl.exp(its_most - new)
                acc = acc * mine_by[:, None] + tl.load(other + in_acc, cache_modifier=".cg") * its_by[:, None]
                its_weight = tl.load(other + BLOCK_H * (BLOCK_D + 1) + h, cache_modifier=".cg")
                weight = weight * mine_by + its_weight * its_by
                most = new
            tl.store(arrived + group, 0)
            found = acc / tl.maximum(weight, 1.0e-30)[:, None]
            tl.store(result + at, found.to(result.dtype.element_ty), mask=there)
    else:
        found = acc / tl.maximum(weight, 1.0e-30)[:, None]
        tl.store(result + at, found.to(result.dtype.element_ty), mask=there)
