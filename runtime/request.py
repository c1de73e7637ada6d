"""One generation: its tokens, its text, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.kv import PageTable
from aicc.runtime.sampling import Sampler, SamplingParams, TokenLogprobs
from aicc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from aicc.runtime.constraint import Constraint

_CONTEXT_TOKENS = 8  # of the prompt, more than a stream decoder looks at
_PROMPT_LOGITS = 16 << 20  # bytes of logits a step makes of a prompt whose log-probabilities are asked
_FEWEST_ROWS = 16

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Piece(msgspec.Struct, frozen=True):
    """What one step of a generation brought.

    Attributes:
        text: Text that is certain now. Empty while a character is incomplete or a stop string
            may be beginning.
        token_ids: The new token; empty in the piece that ends a request which made none in this step:
            cancelled, failed, or with no room for a token.
        finish_reason: Set in the last piece: ``stop`` (end-of-sequence token or stop string),
            ``length``, ``cancelled`` or ``error``.
        error: What went wrong, with ``error``.
        logprobs: Of the new token, if the request asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    logprobs: TokenLogprobs | None = None


class Timings(msgspec.Struct, frozen=True):
    """How long a generation took: seconds of the engine's steps that worked on it."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed a second until the first new token; 0 if there is none."""
        computed = self.prompt_tokens - self.cached_prompt_tokens
        return computed / self.prefill_s if self.prefill_s and self.completion_tokens else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens a second after the first; 0 if there are none."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s else 0.0


class StopStrings:
    """Ends a text before the first of some strings, and holds back what may be the start of one.

    Args:
        stops: The strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns what may be shown, and whether a stop string has appeared."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = next(
            (n for n in range(min(self._longest - 1, len(held)), 0, -1) if self._may_begin(held[-n:])),
            0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)


class Request:
    """A prompt on its way through the engine.

    The engine owns ``cached``, ``pages``, ``page_keys`` and ``cached_prompt_tokens``, and writes drafts into
    ``tokens`` from ``length`` on; everything else belongs to the request.

    Args:
        prompt: int64 ``[n]`` token ids, ``0 < n <= capacity``.
        params: How to sample and when to stop.
        vocab_size: Length of a row of logits.
        capacity: Most tokens, prompt and completion, the sequence may have.
        page_size: Tokens a page of KV memory holds.
        eos_token_ids: Tokens that end the sequence.
        tokenizer: Gives the text; without one pieces carry tokens only.
        emit: Called with every piece, in the engine's thread; must return quickly.
        constraint: What the text may be; used by no other request.

    Attributes:
        prompt_logprobs: Of each token of the prompt, if ``params`` ask for them, as far as it is read;
            complete before the first token is emitted. Nothing is said of the first.
        cached_prompt_tokens: Tokens of the prompt that were in memory and not computed; None while it waits.
    """

    def __init__(
        self,
        prompt: NDArray[np.int64],
        params: SamplingParams,
        *,
        vocab_size: int,
        capacity: int,
        page_size: int,
        eos_token_ids: Sequence[int],
        tokenizer: Tokenizer | None,
        emit: Callable[[Piece], None],
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.prompt_length = self.length = len(prompt)
        self.limit = min(capacity, len(prompt) + params.max_tokens)
        self.tokens = np.empty(self.limit, np.int64)
        self.tokens[: len(prompt)] = prompt
        self.cached = 0  # tokens whose keys and values are in memory
        self.pages = PageTable(-(-self.limit // page_size))
        self.page_keys: list[bytes] = []  # of its first full pages, as far as anybody asked
        self.cached_prompt_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self._prefill_s = self._decode_s = 0.0
        self._constraint = constraint
        self._vocab_size = vocab_size
        self._sampler = Sampler(params, vocab_size, prompt)
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._decoder = tokenizer.stream(prompt[-_CONTEXT_TOKENS:].tolist()) if tokenizer is not None else None
        self._stops = StopStrings(params.stops)
        self._emit = emit

    @property
    def completion_ids(self) -> list[int]:
        """Tokens generated so far, an end-of-sequence token included."""
        ids: list[int] = self.tokens[self.prompt_length : self.length].tolist()
        return ids

    @property
    def timings(self) -> Timings:
        """So far; complete when the request has finished."""
        cached, made = self.cached_prompt_tokens or 0, self.length - self.prompt_length
        return Timings(self.prompt_length, cached, made, self._prefill_s, self._decode_s)

    def spend(self, since: float) -> None:
        """Count the time since ``since`` (``time.perf_counter``) as time spent on this request."""
        seconds = time.perf_counter() - since
        if self.length == self.prompt_length:
            self._prefill_s += seconds
        else:
            self._decode_s += seconds

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to be computed is one of the prompt's."""
        return self.cached < self.prompt_length

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are still to be read."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_length

    @property
    def most_new(self) -> int:
        """Most tokens a step may add, so that their logits stay few."""
        return max(_FEWEST_ROWS, _PROMPT_LOGITS // (4 * self._vocab_size)) if self.reads_prompt else self.limit

    def logits_from(self, past: int, end: int) -> int:
        """The first of the tokens ``past`` to ``end`` that a step computes whose logits are needed, else ``end``."""
        if self.reads_prompt:
            return min(max(past, len(self.prompt_logprobs) - 1), end)
        return min(self.length - 1, end)

    @property
    def takes_best(self) -> bool:
        """Whether nothing but the largest logit, and where it is, is needed of a row."""
        return self.params.takes_best and self._constraint is None

    def accept(self, logits: NDArray[np.float32], best: list[tuple[int, float]], since: float) -> None:
        """Go on with the logits that a step made: of prompt tokens, of the last token, of drafts after it.

        Args:
            logits: float32 ``[rows, vocab]``, of the tokens from :meth:`logits_from` on; ``[rows, 0]`` will do where
                it :attr:`takes_best`.
            best: Of each row the first of the largest, and that logit.
            since: When the step began, by ``time.perf_counter``.
        """
        unread = self.prompt_length - len(self.prompt_logprobs) if self.reads_prompt else 0
        for row in logits[:unread]:
            token = int(self.tokens[len(self.prompt_logprobs)])
            self.prompt_logprobs.append(TokenLogprobs.of(row, token, self.params.prompt_logprobs or 0))
        if len(logits) <= unread or self.length == self.limit:
            self.spend(since)
            if len(logits) > unread:
                self.end("length")
            return
        drafts = self.tokens[self.length : self.length + len(logits) - unread - 1].tolist()
        for row, largest, draft in zip(logits[unread:], best[unread:], [*drafts, None], strict=True):
            if self._next(row, largest, since) != draft or self.finish_reason is not None:
                return
            since = time.perf_counter()

    def _next(self, logits: NDArray[np.float32], largest: tuple[int, float], since: float) -> int:
        """Take the next token from the logits of the last one, and emit it."""
        token = self._sampler.sample(logits, self._constraint.mask() if self._constraint else None, largest)
        self.spend(since)
        if self._constraint:
            self._constraint.advance(token)
        self.tokens[self.length] = token
        self.length += 1
        ended, matched, text = token in self._eos, False, ""
        if self._decoder is not None and not ended:
            text, matched = self._stops.push(self._decoder.push(token))
        if ended or matched or (self._constraint is not None and self._constraint.finished):
            self.finish_reason = "stop"
        elif self.length == self.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and not matched:
            text += self._rest()
        wanted = self.params.logprobs
        logprobs = None if wanted is None else TokenLogprobs.of(logits, token, wanted)
        self._emit(Piece(text, (token,), self.finish_reason, logprobs=logprobs))
        return token

    def _rest(self) -> str:
        """Text held back until the end, up to a stop string in it."""
        if self._decoder is None:
            return ""
        text, stopped = self._stops.push(self._decoder.finish())
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self._stops.finish()

    def end(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Finish from outside; does nothing when finished already."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._emit(Piece(self._rest() if reason == "cancelled" else "", (), reason, error))
