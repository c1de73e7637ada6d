"""Which requests run in a step, and whose keys and values are in memory.

A sequence has tokens, of which the first ``cached`` are in memory; a step computes some that are
not, and when none are missing the last one's logits give the next token. Prefill, decode and
computing again after an eviction are all this one thing. Decodes come first, prompts fill what is
left of the step, cut into chunks.
"""

from __future__ import annotations

from collections import deque

from aicc.runtime.kv import PageAllocator, PageTable
from aicc.runtime.request import Request

_MAX_SEQUENCES = 256  # in one step


class Scheduler:
    """Shares steps and pages between requests, first come first served.

    Args:
        page_count: Pages of KV memory.
        page_size: Tokens a page holds.
        budget: Most tokens a step may add.
    """

    def __init__(self, page_count: int, page_size: int, budget: int) -> None:
        self.budget = budget
        # Prompts get at least half of a step, so that decodes alone cannot starve them.
        self.most_sequences = max(1, min(_MAX_SEQUENCES, budget // 2))
        self.allocator = PageAllocator(page_count, page_size)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first; the youngest gives its pages up first

    def add(self, request: Request) -> None:
        """Queue a request."""
        if request.length < request.limit or request.reads_prompt:
            self.waiting.append(request)
        else:  # the prompt fills the context: there is no room for a token
            request.end("length")

    def schedule(self) -> list[tuple[Request, int]]:
        """Which requests add how many tokens in the next step, each with the pages it needs."""
        scheduled: list[tuple[Request, int]] = []
        budget = self.budget
        for request in [r for r in self.running if r.length - r.cached == 1]:
            if self._make_room(request):
                scheduled.append((request, 1))
                budget -= 1
        for request in [r for r in self.running if r.length - r.cached > 1]:
            new = min(request.length - request.cached, request.most_new, budget)
            if new:
                scheduled.append((request, new))
                budget -= new
        while budget and self.waiting and self._admit(self.waiting[0]):
            request = self.waiting.popleft()
            new = min(request.length, request.most_new, budget)
            scheduled.append((request, new))
            budget -= new
        return scheduled

    def remove(self, request: Request) -> None:
        """Take a request's pages back and forget it."""
        self.allocator.release(request.pages)
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)

    def reset(self) -> None:
        """Forget all KV memory; what has not finished computes again. Right whatever was interrupted."""
        requests = [r for r in dict.fromkeys((*self.running, *self.waiting)) if r.finish_reason is None]
        self.allocator = PageAllocator(self.allocator.page_count, self.allocator.page_size)
        for request in requests:
            request.pages = PageTable(self.allocator.pages_for(request.limit))
            request.cached = 0
        self.running, self.waiting = [], deque(requests)

    def _admit(self, request: Request) -> bool:
        """Give a waiting request the pages of all its tokens, if each running one keeps a page to grow by."""
        missing = self.allocator.pages_for(request.length)
        if len(self.running) == self.most_sequences or missing + len(self.running) > self.allocator.free:
            return False
        self.running.append(request)
        self.allocator.grow(request.pages, request.length)
        return True

    def _make_room(self, request: Request) -> bool:
        """Give a decoding request a page if it needs one, evicting the youngest until one is free."""
        while request.pages and self.allocator.missing(request.pages, request.length) > self.allocator.free:
            youngest = self.running.pop()
            self.allocator.release(youngest.pages)
            youngest.cached = 0
            self.waiting.appendleft(youngest)
        if not request.pages:  # evicted, for an older request or because it was the youngest
            return False
        self.allocator.grow(request.pages, request.length)
        return True
