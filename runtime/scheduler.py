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

import msgspec

from aicc.runtime.errors import UsageError
from aicc.runtime.kv import PageAllocator, PageTable, page_key
from aicc.runtime.request import Request
from aicc.runtime.speculation import PromptLookup, SpeculationOptions

_MAX_SEQUENCES = 256  # in one step


class EngineOptions(msgspec.Struct, frozen=True):
    """What a caller may choose of an engine.

    Attributes:
        prefix_cache: Keep keys and values of what is done, for prompts that begin the same.
        speculation: How to guess tokens and compute several in a step; None does not.
        reproducible: Compute every sequence in steps of its own, always cut alike. With a seed it then gets
            the same answer whatever else is asked, on chips too that round differently in a batch.

    Raises:
        UsageError: Options contradict each other.
    """

    prefix_cache: bool = True
    speculation: SpeculationOptions | None = None
    reproducible: bool = False

    def __post_init__(self) -> None:
        if self.reproducible and self.speculation is not None:
            raise UsageError("reproducible answers and speculation exclude each other.", "Leave one of them out.")


DEFAULT_OPTIONS = EngineOptions()


class Counters(msgspec.Struct):
    """What an engine has done since it was made.

    Attributes:
        prompt_tokens: Tokens of prompts that were admitted.
        cached_tokens: Those of them that were found in memory and not computed.
        preemptions: Times a request lost its pages to an older one.
        drafted_tokens: Tokens that were guessed and computed before they were chosen.
        accepted_tokens: Those of them that were chosen.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Scheduler:
    """Shares steps and pages between requests; pages first come first served.

    Args:
        page_count: Pages of KV memory.
        page_size: Tokens a page holds.
        budget: Most tokens a step may add.
        options: What the engine's caller chose.
    """

    def __init__(self, page_count: int, page_size: int, budget: int, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        self.budget = budget
        self.counters = Counters()
        self._prefix_cache = options.prefix_cache and not options.reproducible
        self._speculation = options.speculation
        # Prompts get at least half of a step, so that decodes alone cannot starve them.
        self.most_sequences = 1 if options.reproducible else max(1, min(_MAX_SEQUENCES, budget // 2))
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
        self._admit_waiting()
        decodes = [r for r in [r for r in self.running if r.length - r.cached == 1] if self._make_room(r)]
        if prompts := [r for r in self.running if r.length - r.cached > 1]:
            return [(r, 1) for r in decodes] + self._cut(prompts, self.budget - len(decodes))
        if self._speculation is None:
            return [(r, 1) for r in decodes]
        budget = self.budget - len(decodes)
        scheduled = []
        for request in decodes:
            drafts = self._draft(request, self._speculation, budget, len(decodes))
            scheduled.append((request, 1 + drafts))
            budget -= drafts
        return scheduled

    def _draft(self, request: Request, options: SpeculationOptions, budget: int, sequences: int) -> int:
        """Write drafts after a request's tokens; how many, for which there is room without evicting anybody."""
        if request.lookup is None:
            request.lookup = PromptLookup(options, request.prompt_length)
        length = request.length
        most = min(budget, request.limit - length - 1)  # with all of them accepted there is one token more
        drafts = request.lookup.propose(request.tokens[:length], most, sequences)
        end = length + len(drafts)
        if self.allocator.missing(request.pages, end) + len(self.running) > self.allocator.free:
            return 0
        self.allocator.grow(request.pages, end)
        request.tokens[length:end] = drafts
        self.counters.drafted_tokens += len(drafts)
        return len(drafts)

    def _cut(self, prompts: list[Request], budget: int) -> list[tuple[Request, int]]:
        """Divide a step's tokens among prompts, the oldest first.

        Half is the oldest one's, so that each has its turn; what is left goes to those that are soonest
        read, so that none waits behind a long one.
        """
        cut = dict.fromkeys(prompts, 0)
        soonest = sorted(prompts, key=lambda r: r.length - r.cached)
        for request, most in [*((r, (budget + 1) // 2) for r in prompts[:1]), *((r, budget) for r in soonest)]:
            missing = min(request.length - request.cached, request.most_new) - cut[request]
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
            keys = self._keys(request, request.cached)
            self.allocator.publish(request.pages, keys[request.pages.published :])

    def failed(self, requests: Iterable[Request]) -> None:
        """Give up requests whose step went wrong, and whatever it may have left in memory."""
        for request in requests:
            self.remove(request)
        self.allocator.forget()

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

    def _admit_waiting(self) -> None:
        """Take in waiting requests, in order, until there is no room for the next.

        One that begins with pages which a running request is computing lets others pass and waits for them.
        """
        if not self.waiting:
            return
        coming = {key for request in self.running for key in self._next_key(request, request.length)}
        for request in list(self.waiting):
            if len(self.running) == self.most_sequences:
                return
            if self._prefix_cache and not request.reads_prompt:
                reusable = request.length - 1  # the last token is always computed, for its logits
                self.allocator.share(request.pages, self._keys(request, reusable))
                if coming.intersection(self._next_key(request, reusable)):
                    self.allocator.release(request.pages)
                    continue
            if not self._admit(request):
                return
            coming.update(self._next_key(request, request.length))

    def _admit(self, request: Request) -> bool:
        """Give a waiting request the pages it lacks, if each running one keeps a page to grow by."""
        shared = len(request.pages)
        if self.allocator.missing(request.pages, request.length) + len(self.running) > self.allocator.free:
            self.allocator.release(request.pages)
            return False
        self.allocator.grow(request.pages, request.length)
        request.cached = shared * self.allocator.page_size
        if request.cached_prompt_tokens is None:
            request.cached_prompt_tokens = request.cached
            self.counters.prompt_tokens += request.prompt_length
            self.counters.cached_tokens += request.cached
        self.waiting.remove(request)
        self.running.append(request)
        return True

    def _keys(self, request: Request, tokens: int) -> list[bytes]:
        """Keys of the full pages of a request's first tokens."""
        keys, size = request.page_keys, self.allocator.page_size
        for start in range(len(keys) * size, tokens - size + 1, size):
            keys.append(page_key(keys[-1] if keys else b"", request.tokens[start : start + size]))
        return keys[: tokens // size]

    def _next_key(self, request: Request, tokens: int) -> list[bytes]:
        """The key of the page after a request's published ones, if its first tokens fill one."""
        if not self._prefix_cache or tokens // self.allocator.page_size <= request.pages.published:
            return []
        return [self._keys(request, tokens)[request.pages.published]]

    def _make_room(self, request: Request) -> bool:
        """Give a decoding request a page if it needs one, evicting the youngest until one is free."""
        while request.pages and self.allocator.missing(request.pages, request.length) > self.allocator.free:
            youngest = self.running.pop()
            self.allocator.release(youngest.pages)
            youngest.cached = 0
            self.counters.preemptions += 1
            self.waiting.appendleft(youngest)
        if not request.pages:  # evicted, for an older request or because it was the youngest
            return False
        self.allocator.grow(request.pages, request.length)
        return True
