"""Which waiting requests begin, and how much of their prompts is in memory already."""

from __future__ import annotations

from collections import deque

from aicc.runtime.kv import PageAllocator
from aicc.runtime.options import Counters
from aicc.runtime.request import Request


class Admission:
    """Takes requests in while there are pages for them.

    Args:
        allocator: Of the pages.
        most: Most requests that may run.
        prefix_cache: Whether prompts begin with what is known of them.
        counters: Told what was admitted.
    """

    def __init__(self, allocator: PageAllocator, most: int, prefix_cache: bool, counters: Counters) -> None:
        self._allocator = allocator
        self._most = most
        self._prefix_cache = prefix_cache
        self._counters = counters

    def admit(self, waiting: deque[Request], running: list[Request]) -> None:
        """Move requests from the one to the other, in order, until there is no room for the next.

        One that begins with pages which a running request is computing lets others pass and waits for them.
        """
        if not waiting:
            return
        coming = {key for request in running for key in self._next_key(request, request.length)}
        for request in list(waiting):
            if len(running) == self._most:
                return
            if self._prefix_cache and not request.reads_prompt:
                reusable = request.length - 1  # the last token is always computed, for its logits
                keys = self._allocator.keys(request.page_keys, request.tokens, reusable, request.prompt_length)
                self._allocator.share(request.pages, keys)
                if coming.intersection(self._next_key(request, reusable)):
                    self._allocator.release(request.pages)
                    continue
            if not self._has_room(request, len(running)):
                return
            running.append(request)  # first: an interruption may leave it in both, and never in neither
            waiting.remove(request)
            coming.update(self._next_key(request, request.length))

    def _has_room(self, request: Request, running: int) -> bool:
        """Give a waiting request the pages it lacks, if each running one keeps a page to grow by."""
        shared = len(request.pages)
        if self._allocator.missing(request.pages, request.length) + running > self._allocator.free:
            self._allocator.release(request.pages)
            return False
        self._allocator.grow(request.pages, request.length)
        request.cached = shared * self._allocator.page_size
        if request.cached_prompt_tokens is None:
            request.cached_prompt_tokens = request.cached
            self._counters.prompt_tokens += request.prompt_length
            self._counters.cached_tokens += request.cached
        return True

    def _next_key(self, request: Request, tokens: int) -> list[bytes]:
        """The key of the page after a request's published ones, if its first tokens fill one."""
        if not self._prefix_cache or tokens // self._allocator.page_size <= request.pages.published:
            return []
        keys = self._allocator.keys(request.page_keys, request.tokens, tokens, request.prompt_length)
        return [keys[request.pages.published]]
