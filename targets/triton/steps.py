"""A step's tokens as the arrays that kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import UsageError
from aicc.runtime.provider import TokenBatch
from aicc.targets.triton.plan import FIELDS, Plan


@dataclass(slots=True)
class StepArrays:
    """What goes to the device before a step.

    Attributes:
        batch: int32 ``[T, 4]``: of each token, itself, its position, its sequence, and a row whose logits are wanted.
        pages: int32 ``[B, pages of a sequence]``.
        tiles: int32 ``[tiles, 2]``, first row and the one after the last; empty where queries are taken one by one.
    """

    batch: NDArray[np.int32]
    pages: NDArray[np.int32]
    tiles: NDArray[np.int32]


def step_arrays(plan: Plan, batch: TokenBatch) -> StepArrays:
    """The arrays of a step; the first rows whose logits are wanted are in it, as many as fit.

    Raises:
        UsageError: The batch contradicts itself or the plan.
    """
    count, tokens = len(batch.past), len(batch.tokens)
    if len(batch.starts) != count + 1 or len(batch.page_starts) != count + 1 or tokens > plan.max_tokens:
        raise UsageError("the batch contradicts itself: its starts and sequences do not match.")
    if count > plan.sequences:
        raise UsageError(f"a step takes {plan.sequences} sequences, and {count} were given.", "Give fewer at once.")
    if tokens and not (batch.tokens.min() >= 0 and batch.tokens.max() < plan.vocab):
        raise UsageError(f"a token is not from 0 to {plan.vocab - 1}.")
    lengths = np.diff(batch.starts)
    made = np.zeros((tokens, FIELDS), np.int32)
    made[:, 0] = batch.tokens
    made[:, 1] = np.arange(tokens) + np.repeat(batch.past - batch.starts[:-1], lengths)
    made[:, 2] = np.repeat(np.arange(count), lengths)
    rows = batch.logit_rows[: plan.head[-1].most]
    made[: len(rows), 3] = rows
    pages = np.zeros((count, plan.table), np.int32)
    for i in range(count):
        own = batch.pages[batch.page_starts[i] : batch.page_starts[i + 1]]
        needed = -(-(int(batch.past[i]) + int(lengths[i])) // plan.page_tokens)
        if not needed <= len(own) or needed > plan.table:
            raise UsageError("the batch contradicts itself: a sequence has too few pages, or is too long.")
        pages[i, :needed] = own[:needed]
    tiles = np.empty((0, 2), np.int32)
    if tokens > plan.decode:
        tiles = np.array(
            [
                (first, min(first + plan.tile, stop))
                for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True)
                for first in range(start, stop, plan.tile)
            ],
            np.int32,
        )
    return StepArrays(made, pages, tiles)
