"""From one row of logits to the next token.

Order of operations, as the field does it: repetition penalty, presence and frequency penalties,
logit bias, tokens that a constraint forbids; then either the largest logit (temperature 0) or
temperature, top-k, top-p, min-p and a draw. Each filter works on what the one before it left,
normalised again. Equal values are ranked by token id, so the result depends on the logits and the
seed alone, never on what else runs at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from aicc.runtime.errors import QualityError, UsageError

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1024
_MAX_LOGPROBS = 20
_ROWS = 64  # a vocabulary is read as a table of so many, to bound its largest values
_SHARERS = 256
_BLOCK = 256
_MAX_INTEGER = 2**63 - 1


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`SamplingParams` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logit_bias: Mapping[int, float]
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None


class SamplingParams(msgspec.Struct, frozen=True):
    """How tokens are chosen and when generation ends.

    Attributes:
        max_tokens: Most tokens to generate; 0 only with ``prompt_logprobs``.
        temperature: 0 takes the most likely token; else logits are divided by it.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the fewest most likely tokens whose probabilities reach this sum.
        min_p: Keep tokens at least this fraction as likely as the most likely one.
        repetition_penalty: Logits of tokens of the prompt and the output are divided by it where
            positive, multiplied where negative; 0.01 to 100.
        presence_penalty: Subtracted from logits of tokens of the output.
        frequency_penalty: Subtracted once for each time a token is in the output.
        seed: Of the draws; None draws a fresh one.
        stop: Generation ends before any of these strings appears in the text.
        logit_bias: Added to the logits of token ids.
        ignore_eos: Go on after an end-of-sequence token.
        logprobs: How many of the most likely tokens to report with each token, besides its own
            log-probability; None reports neither.
        prompt_logprobs: The same of the prompt's own tokens.

    Raises:
        UsageError: A value is outside its range; the message names the field.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    logit_bias: Mapping[int, float] = msgspec.field(default_factory=dict)
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, 1 if self.prompt_logprobs is None else 0, _MAX_INTEGER)
        _check_integer("top_k", self.top_k, 0, _MAX_INTEGER)
        _check_number("temperature", self.temperature, 0, 100)
        _check_number("top_p", self.top_p, 0, 1, exclude_low=True)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_number("presence_penalty", self.presence_penalty, -100, 100)
        _check_number("frequency_penalty", self.frequency_penalty, -100, 100)
        if self.seed is not None:
            _check_integer("seed", self.seed, -_MAX_INTEGER - 1, 2 * _MAX_INTEGER + 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _check_integer(name, count, 0, _MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise _bad("ignore_eos", self.ignore_eos, "true or false")
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, Sequence) or len(stops) > _MAX_STOPS:
            raise _bad("stop", stops, f"at most {_MAX_STOPS} strings")
        for text in stops:
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_STOP_CHARACTERS:
                raise _bad("stop", text, f"strings of 1 to {_MAX_STOP_CHARACTERS} characters")
        msgspec.structs.force_setattr(self, "stop", tuple(stops))
        if not isinstance(self.logit_bias, Mapping):
            raise _bad("logit_bias", self.logit_bias, "a mapping of token ids to numbers")
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias", token, 0, _MAX_INTEGER)
            _check_number(f"logit_bias[{token}]", bias, -100, 100)

    @property
    def takes_best(self) -> bool:
        """Whether nothing but the largest logit, and where it is, is needed of a row."""
        untouched = self.repetition_penalty == 1 and not (self.presence_penalty or self.frequency_penalty)
        reported = self.logprobs is not None or self.prompt_logprobs is not None
        return self.temperature == 0 and untouched and not self.logit_bias and not reported

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, always as a tuple."""
        return tuple(self.stop)


def _bad(name: str, value: object, expected: str) -> UsageError:
    shown = repr(value)
    return UsageError(f"{name} is {shown if len(shown) <= 60 else shown[:57] + '...'} and must be {expected}.")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise _bad(name, value, f"an integer of at least {low}" if high >= _MAX_INTEGER else f"in [{low}, {high}]")


def _check_number(name: str, value: object, low: float, high: float, exclude_low: bool = False) -> None:
    numeric = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not numeric or not low <= float(value) <= high or (exclude_low and value == low):  # type: ignore[arg-type]
        raise _bad(name, value, f"a number in {'(' if exclude_low else '['}{low}, {high}]")


class TokenLogprobs(msgspec.Struct, frozen=True):
    """How likely the model found a token, before penalties, bias, temperature and filters.

    Attributes:
        token: Natural logarithm of its probability.
        top: The most likely tokens and theirs, most likely first.
    """

    token: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: NDArray[np.float32], token: int, count: int) -> Self:
        """Read them off a row of logits.

        Args:
            logits: float32 ``[vocab]``.
            token: An id.
            count: How many of the most likely tokens to tell.
        """
        highest = float(logits.max())
        total = highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
        top = _largest(logits, min(count, len(logits)))
        top = top[np.argsort(-logits[top], kind="stable")]
        return cls(float(logits[token]) - total, tuple((int(i), float(logits[i]) - total) for i in top))


class Sampler:
    """Chooses the tokens of one request.

    Args:
        params: How.
        vocab_size: Length of a row of logits.
        prompt: int64 ids of the prompt, for the repetition penalty.

    Raises:
        UsageError: ``logit_bias`` names a token the model does not have.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, prompt: NDArray[np.int64]) -> None:
        for token in params.logit_bias:
            if token >= vocab_size:
                raise _bad("logit_bias", token, f"for token ids below {vocab_size}")
        self._params = params
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._counts: dict[int, int] = {}  # of the output's tokens
        self._seen = np.zeros(vocab_size, np.bool_)  # tokens of the prompt and the output
        self._seen[prompt] = True
        self._penalises = (
            params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made when a token is first drawn: numpy loads what is random as late, and who decodes greedily needs none."""
        seed = self._params.seed
        return np.random.Generator(np.random.Philox(seed if seed is None else int(seed) % 2**64))

    def sample(
        self,
        logits: NDArray[np.float32],
        allowed: NDArray[np.bool_] | None = None,
        best: tuple[int, float] | None = None,
    ) -> int:
        """The next token.

        Args:
            logits: float32 ``[vocab]``; left unchanged. Not read if ``best`` is all that ``params`` ask for.
            allowed: bool ``[vocab]``, the tokens to choose from, at least one; None is all.
            best: The first of the largest logits, and that logit, if the caller knows them.

        Raises:
            AiccError: The logits are not numbers, so the model is broken.
        """
        adjusted = self._adjust(logits, allowed)
        if best is None or adjusted is not logits:
            token = int(adjusted.argmax())
            highest = float(adjusted[token])
        else:
            token, highest = best
        _check_finite(highest)
        if self._params.temperature > 0:
            ids, weights = self._weights(adjusted, highest)
            drawn = _draw(weights, self._random.random())
            token = drawn if ids is None else int(ids[drawn])
        if self._penalises:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._seen[token] = True
        return token

    def _weights(
        self, adjusted: NDArray[np.float32], highest: float
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """Ascending ids of the tokens that the filters leave, None for all, and weights, of which the largest is 1.

        A pass over a vocabulary takes 5 to 25 microseconds, and every sequence of a step waits for it: so there is
        one of each kind, nothing is normalised before the end, and only what may be kept is sorted.
        """
        params, ids = self._params, None
        if 0 < params.top_k < len(adjusted):
            ids = _largest(adjusted, params.top_k)
            adjusted = adjusted[ids]
        weights = adjusted - np.float32(highest)
        if params.temperature != 1:
            with np.errstate(over="ignore"):  # a tiny temperature sends all but the highest to -inf
                weights /= np.float32(max(params.temperature, 1e-30))
        np.exp(weights, out=weights)
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        if params.min_p > 0:
            kept = np.flatnonzero(weights >= np.float32(params.min_p))
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        return ids, weights

    def _adjust(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Logits after penalties, bias and constraint: a copy when anything changes, else the row itself."""
        adjusted = self._penalised(logits)
        return adjusted if allowed is None else np.where(allowed, adjusted, np.float32(-np.inf))

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        params = self._params
        if not self._penalises and not len(self._bias_ids):
            return logits
        adjusted = logits.astype(np.float32)
        generated = np.fromiter(self._counts.keys(), np.int64)
        if params.repetition_penalty != 1:
            seen = np.flatnonzero(self._seen)
            values, penalty = adjusted[seen], np.float32(params.repetition_penalty)
            adjusted[seen] = np.where(values > 0, values / penalty, values * penalty)
        if len(generated):
            counts = np.fromiter(self._counts.values(), np.float32)
            adjusted[generated] -= np.float32(params.frequency_penalty) * counts + np.float32(params.presence_penalty)
        adjusted[self._bias_ids] += self._bias
        return adjusted


def _check_finite(highest: float) -> None:
    if not math.isfinite(highest):
        raise QualityError(
            f"the model's logits are not finite (the highest is {highest}).",
            "Check that it is whole (aicc inspect ARTIFACT --verify), or compile it with --quant fp32.",
        )


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest values, ascending; the lower index wins a tie. O(n)."""
    if not count:
        return np.empty(0, np.int64)
    kept, head = None, values
    columns = len(values) // _ROWS
    if count < columns // 2:
        # ``count`` columns have a maximum of at least this, so nothing below it is among the largest.
        highest = values[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
        kept = np.flatnonzero(values >= np.partition(highest, columns - count)[columns - count])
        head = values[kept]
    chosen = _first(head, np.partition(head, len(head) - count)[len(head) - count], count)
    return chosen if kept is None else kept[chosen]


def _first(values: NDArray[np.float32], least: np.float32, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest values, ascending, the last being ``least``; the lower index wins a tie."""
    kept = np.flatnonzero(values >= least)
    if len(kept) > count:
        kept = np.delete(kept, np.flatnonzero(values[kept] == least)[count - len(kept) :])
    return kept


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Indices of the fewest largest weights that sum to this part of all or more, ascending."""
    total = float(weights.sum())
    wanted = top_p * total
    # Weights below an equal share of what may be left out are together less than that. A share of a few of them is
    # usually enough to find all that is wanted; the last one is for what rounding may lack.
    for sharers in (_SHARERS, len(weights), math.inf):
        kept = np.flatnonzero(weights >= np.float32((total - wanted) / sharers))
        head = weights[kept]
        ordered = np.sort(head)[::-1]
        cumulative = np.cumsum(ordered, dtype=np.float64)
        if len(kept) and cumulative[-1] >= wanted:
            break
    count = min(int(np.searchsorted(cumulative, wanted, side="left")) + 1, len(head))
    return kept[_first(head, ordered[count - 1], count)]


def _draw(weights: NDArray[np.float32], uniform: float) -> int:
    """The index at which the running sum of weights passes this part (0 to 1) of all; never one without weight."""
    # In two steps, because numpy's running sum is much slower than its sum.
    starts = np.arange(0, len(weights), _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * sums[-1]
    block = _passes(sums, target)
    start = int(starts[block])
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    return start + _passes(inside, target - (sums[block - 1] if block else 0.0))


def _passes(sums: NDArray[np.float64], target: float) -> int:
    """Where a running sum passes a number that is below the last, or has been rounded up to it."""
    return int(np.searchsorted(sums, min(target, np.nextafter(sums[-1], 0)), side="right"))
