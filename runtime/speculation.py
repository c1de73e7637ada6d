"""Drafts: tokens that are probably next, so that one step can make several.

A step computes the last token and some drafts after it, and gives logits for each. Tokens are then
sampled one after the other as ever, from the first row on, and as long as each is the draft that
stood there, the next row is of the right text and counts. A draft is never random, so this is the
rejection rule: a draft is kept with just the probability the model gives it, and what is drawn
instead of it has the distribution of the rest. No token depends on whether there were drafts, as far
as the chip computes a row alike alone and among others.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import UsageError

_MOST_DRAFTS = 64
_RATE_AT_FIRST = 0.5
RATE_CHANGE = 0.15  # how much one token counts


class SpeculationOptions(msgspec.Struct, frozen=True):
    """How to guess what comes next: what followed the last few tokens when they stood in the text before,
    or what a smaller model says.

    Attributes:
        drafts: Most drafts in a step, for each sequence.
        match: How many tokens must agree; twice as many are asked first. A model has no use for it.
        token_cost: What one token more adds to a step of one token, as a part of it. It decides how
            probable a draft must be to be worth it, the more so the more sequences share a step.

    Raises:
        UsageError: A value is outside its range.
    """

    drafts: int = 8
    match: int = 3
    token_cost: float = 0.25

    def __post_init__(self) -> None:
        for name, value, most in (("drafts", self.drafts, _MOST_DRAFTS), ("match", self.match, 16)):
            if not 1 <= value <= most:
                raise UsageError(f"{name} is {value} and must be in [1, {most}].")
        if not 0 < self.token_cost <= 1:
            raise UsageError(f"token_cost is {self.token_cost} and must be in (0, 1].")

    def worthwhile(self, rate: float, sequences: int, draft_cost: float = 0.0) -> int:
        """How many drafts in a row are probable enough.

        A step takes ``a + b * tokens``, shared by its sequences; a token that needs no step of its own
        saves ``a / sequences + b``, and a draft costs ``b``, and a part of what it may save if a model makes it.

        Args:
            rate: How often a draft is right if those before it were.
            sequences: How many share the step.
            draft_cost: That part.
        """
        least = self.token_cost / ((1 - self.token_cost) / sequences + self.token_cost) + draft_cost
        if rate <= least:
            return 0
        return self.drafts if rate >= 1 else min(self.drafts, int(math.log(least) / math.log(rate)))


class PromptLookup:
    """Drafts for one sequence, from its own tokens.

    Args:
        options: How.
        prompt_length: Tokens the model did not choose, which say nothing about how good drafts are.
    """

    def __init__(self, options: SpeculationOptions, prompt_length: int) -> None:
        self._options = options
        # Where more tokens agree, what follows is surer: the longer match is asked first.
        self._matches = [_Matches(length, prompt_length) for length in (2 * options.match, options.match)]

    def propose(self, tokens: NDArray[np.int64], most: int, sequences: int) -> NDArray[np.int64]:
        """Tokens that may come next, none if it is not worth trying.

        What would have been drafted is compared with what came, whether or not it was tried.

        Args:
            tokens: int64 ``[n]``, all so far; none of them ever changes.
            most: How many there is room for.
            sequences: How many share the step.

        Returns:
            int64 ``[k]``, ``k <= most``.
        """
        found = None
        for matches in self._matches:
            at = matches.learn(tokens)
            if found is None and at is not None:
                count = min(most, self._options.worthwhile(matches.rate, sequences))
                found = np.resize(tokens[at:], max(0, count))  # what repeats itself goes on doing so
        return tokens[:0] if found is None else found


class _Matches:
    """Where runs of some length last stood in a text, and how often the same token followed again."""

    def __init__(self, length: int, prompt_length: int) -> None:
        self.rate = _RATE_AT_FIRST
        self._length, self._prompt_length = length, prompt_length
        self._after: dict[tuple[int, ...], int] = {}  # a run -> where the token after it stands
        self._next = length  # the first token not looked at

    def learn(self, tokens: NDArray[np.int64]) -> int | None:
        """Look at the tokens that are new; where the token stands that followed the last run before."""
        length, first = self._length, self._next - self._length
        recent = tokens[first:].tolist()
        for i in range(length, len(recent)):
            run, place = tuple(recent[i - length : i]), first + i
            at = self._after.get(run)
            if at is not None and place >= self._prompt_length:
                self.rate += RATE_CHANGE * ((int(tokens[at]) == recent[i]) - self.rate)
            self._after[run] = place
        self._next = max(self._next, len(tokens))
        return self._after.get(tuple(recent[-length:]))
