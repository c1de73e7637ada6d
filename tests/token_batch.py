"""A step of some sequences as an executable takes it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from aicc.runtime.provider import TokenBatch


def token_batch(
    tokens: Sequence[ArrayLike],
    past: Sequence[int],
    pages: Sequence[Sequence[int]],
    last_rows: bool = False,
    first_prompt: int = 0,
) -> TokenBatch:
    """New tokens of each sequence, how many it has, and its pages; logits of all of them, or of the last ones."""
    starts = np.cumsum([0, *map(len, tokens)]).astype(np.int32)
    return TokenBatch(
        tokens=np.concatenate(tokens).astype(np.int64),
        starts=starts,
        past=np.array(past, np.int32),
        pages=np.concatenate(pages).astype(np.int32),
        page_starts=np.cumsum([0, *map(len, pages)]).astype(np.int32),
        logit_rows=starts[1:] - 1 if last_rows else np.arange(starts[-1], dtype=np.int32),
        first_prompt=first_prompt,
    )
