"""The arrays of a step, over buffers that the next step reuses: a decode must cost next to nothing here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.kv import PageTable
from aicc.runtime.provider import TokenBatch


class Batches:
    """Makes the batches of one executable.

    Args:
        page_count: Pages of KV memory.
        page_size: Tokens a page holds.
        sequences: Most sequences of a step.
        budget: Most tokens of a step.
    """

    def __init__(self, page_count: int, page_size: int, sequences: int, budget: int) -> None:
        self._page_size = page_size
        self._tokens = np.empty(budget, np.int64)
        self._starts, self._page_starts = (np.zeros(sequences + 1, np.int32) for _ in range(2))
        self._past = np.empty(sequences, np.int32)
        self._rows = np.empty(budget, np.int32)
        self._pages = np.empty(page_count, np.int32)  # grows if sequences share many

    def pack(self, parts: Sequence[tuple[NDArray[np.int64], int, PageTable, int]], first_prompt: int) -> TokenBatch:
        """One step.

        Args:
            parts: Of each sequence its new tokens, int64; how many it has in memory; its pages; and of how many
                of the new tokens, from the last one back, logits are wanted.
            first_prompt: From which part on they are tokens of prompts.
        """
        listed = sum(len(table) for _, _, table, _ in parts)
        if listed > len(self._pages):
            self._pages = np.empty(2 * listed, np.int32)
        tokens = pages = rows = 0
        for i, (new, past, table, wanted) in enumerate(parts):
            used = table.pages[: -(-(past + len(new)) // self._page_size)]
            self._tokens[tokens : tokens + len(new)] = new
            self._pages[pages : pages + len(used)] = used
            tokens, pages = tokens + len(new), pages + len(used)
            self._past[i], self._starts[i + 1], self._page_starts[i + 1] = past, tokens, pages
            self._rows[rows : rows + wanted] = np.arange(tokens - wanted, tokens)
            rows += wanted
        count = len(parts)
        return TokenBatch(
            tokens=self._tokens[:tokens],
            starts=self._starts[: count + 1],
            past=self._past[:count],
            pages=self._pages[:pages],
            page_starts=self._page_starts[: count + 1],
            logit_rows=self._rows[:rows],
            first_prompt=first_prompt,
        )
