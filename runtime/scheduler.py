"""Which requests run in a step, and whose keys and values are in memory.

A sequence has tokens, of which the first ``cached`` are in memory; a step computes some that are
not, and when none are missing the last one's logits give the next token. Prefill, decode and
computing again after an eviction are all this one thing. Every step has all decodes in it, and
what it has left is divided among prompts, which are read in chunks. A request begins after the
longest beginning of its tokens whose pages are still known from earlier ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from aicc.runtime.admission import Admission
from aicc.runtime.drafting import Drafter, Drafting
from aicc.runtime.kv import PageAllocator, PageTable
from aicc.runtime.options import Counters, EngineOptions
from aicc.runtime.request import Request

_MAX_SEQUENCES = 256  # in one step


class Scheduler:
    """Shares steps and pages between requests; pages first come first served.

    Args:
        allocator: Of the pages of KV memory.
        budget: Most tokens a step may add.
        options: What the engine's caller chose.
        drafter: Guesses tokens, if anybody does.
    """

    def __init__(self, allocator: PageAllocator, budget: int, options: EngineOptions, drafter: Drafter | None) -> None:
        self.budget = budget
        self.counters = Counters()
        self._prefix_cache = options.prefix_cache and not options.reproducible
        # Prompts get at least half of a step, so that decodes alone cannot starve them.
        self.most_sequences = 1 if options.reproducible else max(1, min(_MAX_SEQUENCES, budget // 2))
        self.allocator = allocator
        self._drafting = Drafting(self.allocator, self.counters, drafter)
        self._admission = Admission(self.allocator, self.most_sequences, self._prefix_cache, self.counters)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first; the youngest gives its pages up first

    def add(self, request: Request) -> None:
        """Queue a request."""
        if request.length < request.limit or request.reads_prompt:
            self.waiting.append(request)
        else:  # the prompt fills the context: there is no room for a token
            request.end("length")

    def schedule(self) -> list[tuple[Request, int]]:
        """Which requests add how many tokens in the next step, each with the pages it needs; prompts come last."""
        self._admission.admit(self.waiting, self.running)
        decodes = [r for r in [r for r in self.running if r.length - r.cached == 1] if self._make_room(r)]
        if prompts := [r for r in self.running if r.length - r.cached > 1]:
            step = [(r, 1) for r in decodes] + self._cut(prompts, self.budget - len(decodes))
        else:
            step = [(r, 1) for r in decodes]
        return sorted(step, key=lambda part: part[0].in_prompt)

    def draft(self, scheduled: list[tuple[Request, int]]) -> list[tuple[Request, int]]:
        """The same step with guesses added, if it is one of decodes."""
        return self._drafting.draft(scheduled, len(self.running), self.budget)

    def _cut(self, prompts: list[Request], budget: int) -> list[tuple[Request, int]]:
        """Divide a step's tokens among prompts, the oldest first.

        Half is the oldest one's, so that each has its turn; what is left goes to those that are soonest
        read, so that none waits behind a long one.
        """
        cut = dict.fromkeys(prompts, 0)
        soonest = sorted(prompts, key=lambda r: r.length - r.cached)
        for request, most in [*((r, (budget + 1) // 2) for r in prompts[:1]), *((r, budget) for r in soonest)]:
            end = request.prompt_length if request.in_prompt else request.length  # what follows is computed apart
            missing = min(end - request.cached, request.most_new) - cut[request]
            new = min(missing, most, budget)
            cut[request] += new
            budget -= new
        return [(request, new) for request, new in cut.items() if new]

    def computed(self, request: Request, end: int, length: int) -> None:
        """Note what a step did for a request: keys and values of its tokens are in memory, as far as they hold.

        Args:
            request: After it took its tokens.
            end: How many tokens, drafts included, have been computed.
            length: How many tokens it had before.
        """
        request.cached = min(end, request.length - 1)  # what comes after a wrong draft is written over
        if end > length:
            self.counters.accepted_tokens += max(0, request.length - length - 1)
        if self._prefix_cache and request.cached // self.allocator.page_size > request.pages.published:
            keys = self.allocator.keys(request.page_keys, request.tokens, request.cached, request.prompt_length)
            self.allocator.publish(request.pages, keys[request.pages.published :])

    def failed(self, requests: Iterable[Request]) -> None:
        """Give up requests whose step went wrong; the others compute again, since a lost device has lost its memory."""
        for request in requests:
            self.remove(request)
        self.reset()

    def remove(self, request: Request) -> None:
        """Take a request's pages back and forget it."""
        self._release(request)
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)

    def reset(self) -> None:
        """Forget all KV memory; what has not finished computes again. Right whatever was interrupted."""
        requests = [r for r in dict.fromkeys((*self.running, *self.waiting)) if r.finish_reason is None]
        self.allocator.reset()
        self._drafting.reset()
        for request in requests:
            request.pages = PageTable(self.allocator.pages_for(request.limit))
            request.cached = 0
        self.running, self.waiting = [], deque(requests)

    def _make_room(self, request: Request) -> bool:
        """Give a decoding request a page if it needs one, evicting the youngest until one is free."""
        while request.pages and self.allocator.missing(request.pages, request.length) > self.allocator.free:
            youngest = self.running[-1]
            self.waiting.appendleft(youngest)  # first: an interruption may leave it in both, and never in neither
            self.running.pop()
            self._release(youngest)
            youngest.cached = 0
            self.counters.preemptions += 1
        if not request.pages:  # evicted, for an older request or because it was the youngest
            return False
        self.allocator.grow(request.pages, request.length)
        return True

    def _release(self, request: Request) -> None:
        self.allocator.release(request.pages)
        self._drafting.release(request)
