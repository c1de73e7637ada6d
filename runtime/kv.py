"""Pages of KV memory: which are free, and which a sequence owns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import ResourceError


class PageTable:
    """The pages of one sequence, in the order of its tokens.

    Args:
        capacity: Most pages the sequence may ever own.
    """

    def __init__(self, capacity: int) -> None:
        self._pages = np.empty(capacity, np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def pages(self) -> NDArray[np.int32]:
        """int32 ``[len(self)]``, a view that later changes may overwrite."""
        return self._pages[: self._count]


class PageAllocator:
    """Hands out the pages of one executable.

    Args:
        page_count: Pages there are, numbered from 0.
        page_size: Tokens a page holds.
    """

    def __init__(self, page_count: int, page_size: int) -> None:
        self.page_count = page_count
        self.page_size = page_size
        # Taken from the end: low numbers first, so that memory never used is never touched.
        self._free = list(range(page_count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)

    def missing(self, table: PageTable, tokens: int) -> int:
        """Pages a sequence needs on top of those it owns, to hold ``tokens`` tokens."""
        return max(0, self.pages_for(tokens) - len(table))

    def grow(self, table: PageTable, tokens: int) -> None:
        """Give a sequence the pages it lacks to hold ``tokens`` tokens.

        Raises:
            ResourceError: Fewer are free; the sequence is left as it was.
        """
        missing = self.missing(table, tokens)
        if missing > len(self._free):
            raise ResourceError(
                f"the KV cache has {len(self._free)} free pages of {self.page_size} tokens and {missing} are needed.",
                "Load the model with more kv_tokens, or run fewer requests at once.",
            )
        for _ in range(missing):
            table._pages[table._count] = self._free.pop()
            table._count += 1

    def release(self, table: PageTable) -> None:
        """Take all pages of a sequence back."""
        self._free.extend(table.pages.tolist()[::-1])
        table._count = 0
