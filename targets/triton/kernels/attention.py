"""What both kinds of attention do with a tile of keys (Dao et al., FlashAttention, 2022: online softmax)."""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton.kernels.columns import tanh


@triton.jit
def keys_at(table, key, end, kv_head, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr):
    """Where keys of a sequence begin in a layer's pages."""
    page = tl.load(table + key // PAGE, mask=key < end, other=0).to(tl.int64)
    return ((page * KV_HEADS + kv_head) * PAGE + key % PAGE) * HEAD


@triton.jit
def cap(scores, SOFT_CAP: tl.constexpr):
    """Scores kept below a limit smoothly, if there is one."""
    if SOFT_CAP > 0.0:
        scores = SOFT_CAP * tanh(scores / SOFT_CAP)
    return scores


@triton.jit
def attend(acc, most, weight, scores, seen, v):
    """Take a tile of keys into weighted sums of values.

    Args:
        acc: ``[queries, head]``, sums so far, relative to ``exp(most)``.
        most: ``[queries]``, the largest score so far.
        weight: ``[queries]``, sums of weights.
        scores: ``[queries, keys]``.
        seen: Which keys each query sees.
        v: float16 ``[keys, head]``.
    """
    new = tl.maximum(most, tl.max(tl.where(seen, scores, -1.0e30), axis=1))
    p = tl.where(seen, tl.exp(scores - new[:, None]), 0.0)
    old = tl.exp(most - new)
    return tl.dot(p.to(v.dtype), v, acc * old[:, None]), new, weight * old + tl.sum(p, axis=1)
