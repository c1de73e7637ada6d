"""Pages of KV memory: which are free, which sequences own one, and which may be used again.

A full page whose tokens and all tokens before them are known by a hash can be owned by several
sequences at once, and keeps its contents when nobody owns it any more, until the room is needed.
Nobody writes into a page that is full, so sharing needs no copies.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import ResourceError


def page_key(before: bytes, tokens: NDArray[np.int64], prompt: int) -> bytes:
    """What a full page holds: a hash of its tokens, how they were computed, and of the key of the page before it.

    Args:
        before: That page's key, empty for a sequence's first page.
        tokens: int64 ``[page_size]``.
        prompt: How many of them were computed as tokens of a prompt.
    """
    return hashlib.blake2b(before + tokens.tobytes() + prompt.to_bytes(4), digest_size=32).digest()


class PageTable:
    """The pages of one sequence, in the order of its tokens.

    Args:
        capacity: Most pages the sequence may ever own.

    Attributes:
        published: How many of its first pages are known to the allocator by their keys.
    """

    def __init__(self, capacity: int) -> None:
        self._pages = np.empty(capacity, np.int32)
        self._count = 0
        self.published = 0

    def __len__(self) -> int:
        return self._count

    @property
    def pages(self) -> NDArray[np.int32]:
        """int32 ``[len(self)]``, a view that later changes may overwrite."""
        return self._pages[: self._count]

    def _append(self, page: int) -> None:
        self._pages[self._count] = page
        self._count += 1


class PageAllocator:
    """Hands out the pages of one executable.

    Args:
        page_count: Pages there are, numbered from 0.
        page_size: Tokens a page holds.
        prompts_apart: Whether the executable computes tokens of prompts otherwise than generated ones.
    """

    def __init__(self, page_count: int, page_size: int, prompts_apart: bool = False) -> None:
        self._prompts_apart = prompts_apart
        self.page_count = page_count
        self.page_size = page_size
        self.reset()

    def reset(self) -> None:
        """Begin anew: all pages are free and nothing is known; tables that own some are void."""
        # Taken from the end: low numbers first, so that memory never used is never touched.
        self._free = list(range(self.page_count - 1, -1, -1))
        self._owners = [0] * self.page_count
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and owned by nobody, longest unused first

    @property
    def free(self) -> int:
        """Pages nobody owns, whether or not their contents are still known."""
        return len(self._free) + len(self._idle)

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
        if missing > self.free:
            raise ResourceError(
                f"the KV cache has {self.free} free pages of {self.page_size} tokens and {missing} are needed.",
                "Load the model with more kv_tokens, or run fewer requests at once.",
            )
        for _ in range(missing):
            page = self._take()
            self._owners[page] = 1
            table._append(page)

    def keys(self, known: list[bytes], tokens: NDArray[np.int64], count: int, prompt: int) -> list[bytes]:
        """Keys of the full pages of a sequence's first tokens.

        Args:
            known: Of its first pages, as far as anybody asked; more are added.
            tokens: int64, at least ``count``.
            count: How many tokens.
            prompt: How many of the sequence's tokens are its prompt.
        """
        size = self.page_size
        for start in range(len(known) * size, count - size + 1, size):
            read = min(max(prompt - start, 0), size) if self._prompts_apart else size
            known.append(page_key(known[-1] if known else b"", tokens[start : start + size], read))
        return known[: count // size]

    def share(self, table: PageTable, keys: Iterable[bytes]) -> None:
        """Give a sequence that owns nothing the pages that are known of its beginning.

        Args:
            table: Where they go.
            keys: Of the sequence's pages, from the first.
        """
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._idle.pop(page, None)
            self._owners[page] += 1
            table._append(page)
        table.published = len(table)

    def publish(self, table: PageTable, keys: Iterable[bytes]) -> None:
        """Tell what a sequence's next full pages hold, after those that are published.

        Args:
            table: The sequence's.
            keys: Of the pages from ``table.published`` on; their contents are written.
        """
        for key in keys:
            page = int(table.pages[table.published])
            if key not in self._page_of:  # else another sequence has computed the same meanwhile
                self._page_of[key] = page
                self._key_of[page] = key
            table.published += 1

    def release(self, table: PageTable) -> None:
        """Take all pages of a sequence back. Of those that stay known, its last are forgotten first."""
        for page in table.pages.tolist()[::-1]:
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        table._count = table.published = 0

    def forget(self) -> None:
        """Trust no contents any more; who owns a page keeps it."""
        self._free.extend(reversed(self._idle))
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
