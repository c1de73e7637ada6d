"""The two forms an answer takes: a chat's and a completion's, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from aicc.runtime.generator import Model
from aicc.runtime.sampling import TokenLogprobs
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.generation import Generation, Outcome, finish_reason
from aicc.runtime.server.schema import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from aicc.runtime.server.sse import DONE, event

Logprobs = Sequence[tuple[int, TokenLogprobs]]


class Form(Protocol):
    """How one endpoint answers."""

    def answer(self, outcomes: Sequence[Outcome], usage: Usage) -> msgspec.Struct:
        """The whole answer."""
        ...

    def opening(self, index: int) -> msgspec.Struct | None:
        """The event before a choice's first text, if the form has one."""
        ...

    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> msgspec.Struct:
        """The event with a choice's next text, or with its end."""
        ...

    def usage(self, usage: Usage) -> msgspec.Struct:
        """The last event, if token counts were asked for."""
        ...


async def events(form: Form, generation: Generation, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """A whole stream, encoded; a failure is its last event."""
    try:
        for index in range(generation.size):
            if (opening := form.opening(index)) is not None:
                yield event(opening)
        async for index, piece in generation.pieces():
            logprobs = generation.logprobs(piece)
            if piece.text or logprobs:
                yield event(form.piece(index, piece.text, None, logprobs))
            if (finish := finish_reason(piece)) is not None:
                yield event(form.piece(index, "", finish, []))
        if include_usage:
            yield event(form.usage(generation.usage))
        yield DONE
    except ApiError as error:
        yield b"data: " + error.body() + b"\n\n"


class ChatForm:
    """Answers of ``/v1/chat/completions``.

    Args:
        model: Whose tokenizer names tokens in log-probabilities.
        name: What the model is called.
        fingerprint: What the answers say made them.
        include_usage: Whether streamed events have the field ``usage``.
    """

    def __init__(self, model: Model, name: str, fingerprint: str, include_usage: bool) -> None:
        self._model = model
        self._name = name
        self._fingerprint = fingerprint
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        self._id = "chatcmpl-" + secrets.token_hex(12)
        self._created = int(time.time())

    def answer(self, outcomes: Sequence[Outcome], usage: Usage) -> ChatCompletion:
        """See :class:`Form`."""
        choices = [
            ChatChoice(i, AnswerMessage(o.text), o.finish_reason or "stop", self._logprobs(o.logprobs))
            for i, o in enumerate(outcomes)
        ]
        return ChatCompletion(self._id, self._created, self._name, choices, usage, self._fingerprint)

    def opening(self, index: int) -> ChatChunk:
        """See :class:`Form`."""
        return self._chunk([ChunkChoice(index, Delta("assistant", ""))])

    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> ChatChunk:
        """See :class:`Form`."""
        delta = Delta() if finish else Delta(content=text)
        return self._chunk([ChunkChoice(index, delta, finish, self._logprobs(logprobs))])

    def usage(self, usage: Usage) -> ChatChunk:
        """See :class:`Form`."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage)

    def _logprobs(self, tokens: Logprobs) -> ChatLogprobs | None:
        if not tokens:
            return None
        content = []
        for token, found in tokens:
            texts = [_text(self._model, id) for id, _ in found.top]
            top = [TopLogprob(text, value, _utf8(text)) for text, (_, value) in zip(texts, found.top, strict=True)]
            text = _text(self._model, token)
            content.append(TokenLogprob(text, found.token, _utf8(text), top))
        return ChatLogprobs(content)


class CompletionForm:
    """Answers of ``/v1/completions``; arguments as :class:`ChatForm`."""

    def __init__(self, model: Model, name: str, fingerprint: str, include_usage: bool) -> None:
        self._model = model
        self._name = name
        self._fingerprint = fingerprint
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        self._id = "cmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._offsets: dict[int, int] = {}  # characters of each choice's tokens so far

    def answer(self, outcomes: Sequence[Outcome], usage: Usage) -> Completion:
        """See :class:`Form`."""
        choices = [
            CompletionChoice(i, o.text, o.finish_reason, self._logprobs(i, o.logprobs)) for i, o in enumerate(outcomes)
        ]
        return self._completion(choices, usage)

    def opening(self, index: int) -> None:
        """See :class:`Form`."""

    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> Completion:
        """See :class:`Form`."""
        return self._completion([CompletionChoice(index, text, finish, self._logprobs(index, logprobs))])

    def usage(self, usage: Usage) -> Completion:
        """See :class:`Form`."""
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage)

    def _logprobs(self, index: int, tokens: Logprobs) -> CompletionLogprobs | None:
        if not tokens:
            return None
        texts = [_text(self._model, token) for token, _ in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        top = [{_text(self._model, id): value for id, value in found.top} for _, found in tokens]
        return CompletionLogprobs(texts, [found.token for _, found in tokens], top, offsets)


def _text(model: Model, token: int) -> str:
    """A token's own text; special tokens by their names, parts of characters as U+FFFD."""
    return model.tokenizer.decode([token]) if model.has_tokenizer else f"token_id:{token}"


def _utf8(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())
