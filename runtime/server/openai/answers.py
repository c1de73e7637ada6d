"""The two forms an answer takes: a chat's and a completion's, whole or streamed."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from aicc.runtime.generator import Model
from aicc.runtime.sampling import TokenLogprobs
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.generation import FinishReason, Generation, Outcome, finish_reason
from aicc.runtime.server.openai.schema import (
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
    TokenLogprob,
    TopLogprob,
    Usage,
)
from aicc.runtime.server.sse import DONE, event

Logprobs = Sequence[tuple[int, TokenLogprobs]]


class _Form(ABC):
    """What both forms do alike.

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
        self._include_usage = include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        self._id = secrets.token_hex(12)
        self._created = int(time.time())

    @abstractmethod
    def opening(self, index: int) -> msgspec.Struct | None:
        """The event before a choice's first text, if the form has one."""

    @abstractmethod
    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> msgspec.Struct:
        """The event with a choice's next text, or with its end."""

    @abstractmethod
    def usage(self, usage: Usage) -> msgspec.Struct:
        """The last event, if token counts were asked for."""

    async def events(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """See :class:`aicc.runtime.server.answering.Form`."""
        try:
            for index in range(generation.size):
                if (opening := self.opening(index)) is not None:
                    yield event(opening)
            async for index, piece in generation.pieces():
                logprobs = generation.logprobs(piece)
                if piece.text or logprobs:
                    yield event(self.piece(index, piece.text, None, logprobs))
                if (finish := finish_reason(piece)) is not None:
                    yield event(self.piece(index, "", finish, []))
            if self._include_usage:
                yield event(self.usage(usage_of(generation)))
            yield DONE
        except ApiError as error:
            yield b"data: " + error.body() + b"\n\n"


class ChatForm(_Form):
    """Answers of ``/v1/chat/completions``."""

    def answer(self, generation: Generation, outcomes: Sequence[Outcome]) -> ChatCompletion:
        """See :class:`aicc.runtime.server.answering.Form`."""
        choices = [
            ChatChoice(i, AnswerMessage(o.text), o.finish_reason or "stop", self._logprobs(o.logprobs))
            for i, o in enumerate(outcomes)
        ]
        usage = usage_of(generation)
        return ChatCompletion("chatcmpl-" + self._id, self._created, self._name, choices, usage, self._fingerprint)

    def opening(self, index: int) -> ChatChunk:
        """See :class:`_Form`."""
        return self._chunk([ChunkChoice(index, Delta("assistant", ""))])

    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> ChatChunk:
        """See :class:`_Form`."""
        delta = Delta() if finish else Delta(content=text)
        return self._chunk([ChunkChoice(index, delta, finish, self._logprobs(logprobs))])

    def usage(self, usage: Usage) -> ChatChunk:
        """See :class:`_Form`."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            "chatcmpl-" + self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage
        )

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


class CompletionForm(_Form):
    """Answers of ``/v1/completions``."""

    def __init__(self, model: Model, name: str, fingerprint: str, include_usage: bool) -> None:
        super().__init__(model, name, fingerprint, include_usage)
        self._offsets: dict[int, int] = {}  # characters of each choice's tokens so far

    def answer(self, generation: Generation, outcomes: Sequence[Outcome]) -> Completion:
        """See :class:`aicc.runtime.server.answering.Form`."""
        choices = [
            CompletionChoice(i, o.text, o.finish_reason, self._logprobs(i, o.logprobs)) for i, o in enumerate(outcomes)
        ]
        return self._completion(choices, usage_of(generation))

    def opening(self, index: int) -> None:
        """See :class:`_Form`."""

    def piece(self, index: int, text: str, finish: FinishReason | None, logprobs: Logprobs) -> Completion:
        """See :class:`_Form`."""
        return self._completion([CompletionChoice(index, text, finish, self._logprobs(index, logprobs))])

    def usage(self, usage: Usage) -> Completion:
        """See :class:`_Form`."""
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            "cmpl-" + self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage
        )

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


def usage_of(generation: Generation) -> Usage:
    """Token counts so far."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return Usage(prompt, completion, prompt + completion)


def _text(model: Model, token: int) -> str:
    """A token's own text; special tokens by their names, parts of characters as U+FFFD."""
    return model.tokenizer.decode([token]) if model.has_tokenizer else f"token_id:{token}"


def _utf8(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())
