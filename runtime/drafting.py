"""Where drafts come from, and how they get into a step: beside :mod:`aicc.runtime.speculation`, which says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aicc.runtime.kv import PageAllocator
from aicc.runtime.options import Counters
from aicc.runtime.request import Request
from aicc.runtime.speculation import PromptLookup, SpeculationOptions


class Drafter(Protocol):
    """Guesses what requests go on with. Used by one thread at a time."""

    def propose(self, room: Mapping[Request, int]) -> Mapping[Request, list[int]]:
        """Tokens that may come next, of those requests for which it is worth trying.

        Args:
            room: All decodes of a step, and the most drafts each has room for.
        """
        ...

    def release(self, request: Request) -> None:
        """Give up what is kept for a request; it may come back, and then begins anew."""
        ...

    def reset(self) -> None:
        """The same for all requests. Right whatever was interrupted."""
        ...


class PromptLookups:
    """Drafts of every sequence from its own tokens.

    Args:
        options: How.
    """

    def __init__(self, options: SpeculationOptions) -> None:
        self._options = options
        self._lookups: dict[Request, PromptLookup] = {}

    def propose(self, room: Mapping[Request, int]) -> Mapping[Request, list[int]]:
        """See :class:`Drafter`."""
        drafts = {}
        for request, most in room.items():
            if request not in self._lookups:
                self._lookups[request] = PromptLookup(self._options, request.prompt_length)
            lookup = self._lookups[request]
            drafts[request] = lookup.propose(request.tokens[: request.length], most, len(room)).tolist()
        return drafts

    def release(self, request: Request) -> None:
        """See :class:`Drafter`."""
        self._lookups.pop(request, None)

    def reset(self) -> None:
        """See :class:`Drafter`."""
        self._lookups.clear()


class Drafting:
    """Writes drafts into steps.

    Args:
        allocator: Of the pages that hold keys and values of what is drafted, too.
        counters: Told what was drafted.
        drafter: Makes the drafts; without one there are none.
    """

    def __init__(self, allocator: PageAllocator, counters: Counters, drafter: Drafter | None) -> None:
        self._allocator = allocator
        self._counters = counters
        self._drafter = drafter

    def draft(self, scheduled: list[tuple[Request, int]], running: int, budget: int) -> list[tuple[Request, int]]:
        """Write drafts after the tokens of a step of decodes, where there is room without evicting anybody.

        Args:
            scheduled: Which requests add how many tokens.
            running: How many requests may need a page in the next step.
            budget: Most tokens of a step.

        Returns:
            The same, with drafts among what is to be computed.
        """
        if self._drafter is None or any(r.length - r.cached > 1 for r, _ in scheduled):
            return scheduled
        budget -= len(scheduled)
        # With all of them accepted there is one token more.
        proposed = self._drafter.propose({r: min(budget, r.limit - r.length - 1) for r, _ in scheduled})
        step = []
        for request, new in scheduled:
            drafts = proposed.get(request, [])[:budget]
            end = request.length + len(drafts)
            if self._allocator.missing(request.pages, end) + running > self._allocator.free:
                drafts = []
            if drafts:
                self._allocator.grow(request.pages, end)
                request.tokens[request.length : end] = drafts
                self._counters.drafted_tokens += len(drafts)
                budget -= len(drafts)
            step.append((request, new + len(drafts)))
        return step

    def release(self, request: Request) -> None:
        """A request has lost its pages."""
        if self._drafter is not None:
            self._drafter.release(request)

    def reset(self) -> None:
        """All requests have."""
        if self._drafter is not None:
            self._drafter.reset()
