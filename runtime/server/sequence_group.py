"""From a request to sequences in the engine, and from their pieces back to the caller; no API is known here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from aicc.runtime.constraint import Constraint
from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.request import Piece, Request, Timings
from aicc.runtime.sampling import SamplingParams, TokenLogprobs
from aicc.runtime.server.engine_thread import EngineThread
from aicc.runtime.server.errors import ApiError, from_foreseen, too_late
from aicc.runtime.server.recording import RequestRecord, SequenceTimes

FinishReason = Literal["stop", "length"]
log = logging.getLogger("uvicorn.error")


@dataclass(slots=True)
class Outcome:
    """What became of one sequence: its pieces, the last with a finish reason when complete."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text."""
        return "".join(piece.text for piece in self.pieces)


class SequenceGroup:
    """The sequences of one API request: choice ``i`` of prompt ``p`` is number ``p * n + i``.

    Must be made on the event loop that reads it, and closed.

    Args:
        engine: Where they run; room is kept for them from now on.
        sequences: How many there will be.
        record: Of the request; it learns what came of them, and says when they must have ended.

    Raises:
        ApiError: There is no room, or no model.
    """

    def __init__(self, engine: EngineThread, sequences: int, record: RequestRecord) -> None:
        self.model = engine.reserve(sequences)
        self._engine = engine
        self._record = record
        self._reserved = sequences
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._requests: list[Request] = []
        self._choices = 1
        self._eos: frozenset[int] = frozenset()
        self._time_out: asyncio.TimerHandle | None = None
        if record.most_seconds is not None:
            self._time_out = self._loop.call_at(
                record.started + record.most_seconds, self._pieces.put_nowait, (0, _late(record.most_seconds))
            )

    def prepare(
        self,
        prompts: Sequence[str | list[int]],
        choices: Sequence[SamplingParams],
        param: str,
        constraint: Callable[[], Constraint] | None = None,
    ) -> None:
        """Make the sequences, tokenising what is text. Slow for long prompts; runs on any thread.

        Args:
            prompts: Texts or token ids.
            choices: How to sample each choice of every prompt.
            param: The request's field the prompts came from, for errors.
            constraint: Makes what each sequence must follow.

        Raises:
            ApiError: A prompt or a sampling field does not fit the model.
        """
        model = self.model
        self._choices = len(choices)
        self._eos = frozenset(model.manifest.llm.eos_token_ids if model.manifest.llm else ())
        for prompt in prompts:
            try:
                ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            except AiccError as error:
                raise from_foreseen(error, param) from error
            for params in choices:
                self._requests.append(self._request(model, ids, params, param, constraint and constraint()))

    def _request(
        self, model: Model, ids: list[int], params: SamplingParams, param: str, constraint: Constraint | None
    ) -> Request:
        index = len(self._requests)
        times = SequenceTimes()
        self._record.sequences.append(times)

        def emit(piece: Piece) -> None:
            now, last = time.monotonic(), times.ended
            times.ended = now
            if not times.first_token:
                self._begun(request, times, now, bool(piece.token_ids))
            elif piece.token_ids:
                self._engine.observer.next_tokens(len(piece.token_ids), now - last)
            self._engine.call_after_step(self._loop, partial(self._pieces.put_nowait, (index, piece)))

        try:
            request = model.request(ids, params, emit, constraint)
        except AiccError as error:
            # The sampler knows the vocabulary, which bounds the one field that is not the prompt's.
            at_fault = "logit_bias" if error.message.startswith("logit_bias") else param
            raise from_foreseen(error, at_fault) from error
        return request

    def _begun(self, request: Request, times: SequenceTimes, now: float, is_token: bool) -> None:
        """Note when a sequence began, at its first piece, a token unless it ends without; on the engine's thread."""
        prefill = request.timings.prefill_s
        queued = max(0.0, now - times.submitted - prefill)
        times.begun = times.submitted + queued if prefill else 0.0
        if not is_token:
            return
        times.first_token = now
        since = now - self._record.started
        self._engine.observer.first_token(since, queued)
        if self._record.first_token_seconds is None:
            self._record.first_token_seconds = since

    def start(self) -> None:
        """Hand the prepared sequences to the engine.

        Raises:
            ApiError: The model has failed meanwhile.
        """
        now = time.monotonic()
        for times in self._record.sequences:
            times.submitted = now
        self._engine.submit(self._requests)
        self._reserved = 0

    def close(self) -> None:
        """End what has not finished, and what never started; tell the record."""
        if self._time_out is not None:
            self._time_out.cancel()
        if self._requests:
            self._record.prompt_tokens = self.prompt_tokens
            self._record.cached_tokens = self.cached_tokens
            self._record.completion_tokens = self.completion_tokens
            self._record.finish_reasons = [request.finish_reason or "cancelled" for request in self._requests]
        if self._reserved:
            self._engine.release(self._reserved)
            self._reserved = 0
        else:
            self._engine.cancel([request for request in self._requests if request.finish_reason is None])

    @property
    def size(self) -> int:
        """How many sequences there are."""
        return len(self._requests)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts; each counts once, however many choices it has."""
        return sum(request.prompt_length for request in self._requests[:: self._choices])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in memory and not computed, each prompt counted once."""
        return sum(request.cached_prompt_tokens or 0 for request in self._requests[:: self._choices])

    def prompt(self, index: int) -> tuple[list[int], list[TokenLogprobs | None]]:
        """A sequence's prompt, and the log-probabilities of its tokens if ``params`` asked; complete with its piece."""
        request = self._requests[index]
        ids: list[int] = request.tokens[: request.prompt_length].tolist()
        return ids, request.prompt_logprobs

    def timings(self, index: int) -> Timings:
        """How long the engine worked on a sequence so far."""
        return self._requests[index].timings

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(len(request.completion_ids) for request in self._requests)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Numbers of sequences and their pieces as they come, until all have finished.

        Raises:
            ApiError: A sequence failed.
        """
        unfinished = len(self._requests)
        while unfinished:
            index, piece = await self._pieces.get()
            if piece.error is not None:
                failure = _failure(piece.error)
                self._record.error = failure.detail.code
                raise failure
            yield index, piece
            unfinished -= piece.finish_reason is not None

    async def outcomes(self) -> list[Outcome]:
        """All sequences, when all have finished.

        Raises:
            ApiError: A sequence failed.
        """
        outcomes = [Outcome() for _ in self._requests]
        async for index, piece in self.pieces():
            outcomes[index].pieces.append(piece)
        return outcomes

    def logprobs(self, piece: Piece) -> list[tuple[int, TokenLogprobs]]:
        """A piece's token with its log-probabilities, if they were asked for; not of the token that ends the text."""
        if piece.logprobs is None or (piece.finish_reason == "stop" and piece.token_ids[0] in self._eos):
            return []
        return [(piece.token_ids[0], piece.logprobs)]


def finish_reason(piece: Piece) -> FinishReason | None:
    """Why a sequence ended with this piece, in the API's words."""
    return None if piece.finish_reason is None else "stop" if piece.finish_reason == "stop" else "length"


def _late(seconds: float) -> Piece:
    return Piece("", (), "error", too_late(seconds))


def _failure(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AiccError):
        return from_foreseen(error)
    log.error("A generation failed: %s", error, exc_info=error)
    return ApiError(500, "The model failed on this request; the server's log has the reason.", "internal_error")
