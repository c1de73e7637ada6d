"""From an API request to sequences in the engine, and from their pieces back to the caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.request import Piece, Request
from aicc.runtime.sampling import SamplingParams, TokenLogprobs
from aicc.runtime.server.engine_thread import EngineThread
from aicc.runtime.server.errors import ApiError, from_foreseen, invalid
from aicc.runtime.server.schema import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    FinishReason,
    SamplingRequest,
    Usage,
)

_UNBOUNDED = 2**31 - 1  # tokens; the context ends a chat that names no limit
_COMPLETION_TOKENS = 16  # what the API gives a completion that names none
log = logging.getLogger("uvicorn.error")


@dataclass(slots=True)
class Outcome:
    """What became of one sequence; complete when ``finish_reason`` is set."""

    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)


class Generation:
    """The sequences of one API request: choice ``i`` of prompt ``p`` is number ``p * n + i``.

    Must be made on the event loop that reads it, and closed.

    Args:
        engine: Where they run; room is kept for them from now on.
        sequences: How many there will be.

    Raises:
        ApiError: There is no room, or no model.
    """

    def __init__(self, engine: EngineThread, sequences: int) -> None:
        self.model = engine.reserve(sequences)
        self._engine = engine
        self._reserved = sequences
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._requests: list[Request] = []
        self._choices = 1
        self._eos: frozenset[int] = frozenset()

    def prepare(self, prompts: Sequence[str | list[int]], asked: SamplingRequest, param: str) -> None:
        """Make the sequences, tokenising what is text. Slow for long prompts; runs on any thread.

        Args:
            prompts: Texts or token ids.
            asked: How to sample.
            param: The request's field the prompts came from, for errors.

        Raises:
            ApiError: A prompt or a sampling field does not fit the model.
        """
        model = self.model
        self._choices = asked.n or 1
        self._eos = frozenset(model.manifest.llm.eos_token_ids if model.manifest.llm else ())
        for prompt in prompts:
            try:
                ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            except AiccError as error:
                raise from_foreseen(error, param) from error
            for choice in range(self._choices):
                self._requests.append(self._request(model, ids, _params(asked, choice), param))

    def _request(self, model: Model, ids: list[int], params: SamplingParams, param: str) -> Request:
        index = len(self._requests)

        def emit(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop is gone: so is whoever wanted to know
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        try:
            return model.request(ids, params, emit)
        except AiccError as error:
            # The sampler knows the vocabulary, which bounds the one field that is not the prompt's.
            at_fault = "logit_bias" if error.message.startswith("logit_bias") else param
            raise from_foreseen(error, at_fault) from error

    def start(self) -> None:
        """Hand the prepared sequences to the engine.

        Raises:
            ApiError: The model has failed meanwhile.
        """
        self._engine.submit(self._requests)
        self._reserved = 0

    def close(self) -> None:
        """End what has not finished, and what never started."""
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
    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = sum(request.prompt_length for request in self._requests[:: self._choices])
        completion = sum(len(request.completion_ids) for request in self._requests)
        return Usage(prompt, completion, prompt + completion)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Numbers of sequences and their pieces as they come, until all have finished.

        Raises:
            ApiError: A sequence failed.
        """
        unfinished = len(self._requests)
        while unfinished:
            index, piece = await self._pieces.get()
            if piece.error is not None:
                raise _failure(piece.error)
            yield index, piece
            unfinished -= piece.finish_reason is not None

    async def outcomes(self) -> list[Outcome]:
        """All sequences, when all have finished.

        Raises:
            ApiError: A sequence failed.
        """
        outcomes = [Outcome() for _ in self._requests]
        async for index, piece in self.pieces():
            outcome = outcomes[index]
            outcome.text += piece.text
            outcome.finish_reason = finish_reason(piece)
            outcome.logprobs += self.logprobs(piece)
        return outcomes

    def logprobs(self, piece: Piece) -> list[tuple[int, TokenLogprobs]]:
        """A piece's token with its log-probabilities, if they were asked for; not of the token that ends the text."""
        if piece.logprobs is None or (piece.finish_reason == "stop" and piece.token_ids[0] in self._eos):
            return []
        return [(piece.token_ids[0], piece.logprobs)]


def finish_reason(piece: Piece) -> FinishReason | None:
    """Why a sequence ended with this piece, in the API's words."""
    return None if piece.finish_reason is None else "stop" if piece.finish_reason == "stop" else "length"


def _failure(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AiccError):
        return from_foreseen(error)
    log.error("A generation failed: %s", error, exc_info=error)
    return ApiError(500, "The model failed on this request; the server's log has the reason.", "internal_error")


def _params(asked: SamplingRequest, choice: int) -> SamplingParams:
    """Sampling of one choice; what is left out has the API's default, not the library's."""
    limit = asked.max_tokens
    logprobs: int | None = None
    if isinstance(asked, ChatRequest):
        limit = asked.max_completion_tokens or limit or _UNBOUNDED
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    elif isinstance(asked, CompletionRequest):
        limit = limit or _COMPLETION_TOKENS
        logprobs = asked.logprobs
    return SamplingParams(
        max_tokens=limit or _UNBOUNDED,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=None if asked.seed is None else asked.seed + choice,
        stop=asked.stop or (),
        logit_bias=asked.logit_bias or {},
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
    )


def check_fields(asked: SamplingRequest) -> None:
    """Refuse combinations of fields that types alone cannot.

    Raises:
        ApiError: Naming the field.
    """
    if asked.stream_options is not None and not asked.stream:
        raise invalid("'stream_options' is only allowed with 'stream'.", "stream_options")
    if isinstance(asked, ChatRequest):
        if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
            raise invalid("'max_tokens' and 'max_completion_tokens' differ. Give one of them.", "max_tokens")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise invalid("'top_logprobs' is only allowed with 'logprobs'.", "top_logprobs")
    elif isinstance(asked, CompletionRequest) and asked.echo:
        raise invalid("'echo' is not implemented by this server. Leave it out.", "echo", "unsupported_parameter")


def chat_messages(asked: ChatRequest) -> list[dict[str, Any]]:
    """The conversation as chat templates know it: ``developer`` is the API's newer name of ``system``."""
    roles = {"developer": "system"}
    return [{"role": roles.get(m.role, m.role), "content": m.text} for m in asked.messages]


def completion_prompts(asked: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts of a completion: the field holds one or several, texts or token ids.

    Raises:
        ApiError: It mixes texts and ids, or has too many.
    """
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if len(kinds) != 1:
        raise invalid("'prompt' mixes texts, token ids and lists of token ids. Use one kind.", "prompt")
    if kinds == {int}:
        return [prompt]  # type: ignore[list-item]
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"'prompt' has {len(prompt)} prompts and may have {MAX_PROMPTS}.", "prompt")
    return prompt  # type: ignore[return-value]
