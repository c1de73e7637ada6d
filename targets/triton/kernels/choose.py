"""The likeliest token of each row of logits, so that logits need not leave the GPU."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def choose(logits, chosen, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The grid is ``[rows]``.

    Args:
        logits: float32 ``[rows, VOCAB]``.
        chosen: int32 ``[rows, 2]``: of each row the first of the largest logits, and that logit's bits; NaN if any is.
        VOCAB: Columns.
        BLOCK: Columns at once.
    """
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    broken = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, VOCAB, BLOCK):
        at = begin + cols
        x = tl.load(logits + row.to(tl.int64) * VOCAB + at, mask=at < VOCAB, other=-float("inf"))
        broken |= (x != x).to(tl.int32)
        where = tl.where(x > most, at, where)
        most = tl.where(x > most, x, most)
    highest = tl.max(most, axis=0)
    token = tl.min(tl.where(most == highest, where, VOCAB), axis=0)
    highest = tl.where(tl.max(broken, axis=0) > 0, float("nan"), highest)
    tl.store(chosen + row * 2, tl.minimum(token, VOCAB - 1))
    tl.store(chosen + row * 2 + 1, highest.to(tl.int32, bitcast=True))
