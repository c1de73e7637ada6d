"""What the answers of chats and completions have in common, whole or streamed."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial

import msgspec
from msgspec import UNSET, UnsetType

from aicc.runtime.generator import Model
from aicc.runtime.request import Piece
from aicc.runtime.sampling import TokenLogprobs
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.openai.schema import PromptTokensDetails, Usage
from aicc.runtime.server.sequence_group import SequenceGroup
from aicc.runtime.server.sse import DONE, event

Logprobs = Sequence[tuple[int, TokenLogprobs]]


class StreamedForm(ABC):
    """Streams choices as events.

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
    def opening(self, index: int) -> Iterator[msgspec.Struct]:
        """The events before a choice's first piece."""

    @abstractmethod
    def piece(self, group: SequenceGroup, index: int, piece: Piece) -> Iterator[msgspec.Struct]:
        """The events of a choice's next piece."""

    def takes_long(self, index: int) -> bool:
        """Whether a choice's next piece may take seconds to write, in which others go on."""
        return False

    @abstractmethod
    def usage(self, usage: Usage) -> msgspec.Struct:
        """The last event, if token counts were asked for."""

    async def events(self, group: SequenceGroup) -> AsyncGenerator[bytes, None]:
        """See :class:`aicc.runtime.server.answering.Form`."""
        try:
            for index in range(group.size):
                for message in self.opening(index):
                    yield event(message)
            async for index, piece in group.pieces():
                write = partial(self._write, group, index, piece)
                for data in await asyncio.to_thread(write) if self.takes_long(index) else write():
                    yield data
            if self._include_usage:
                yield event(self.usage(usage_of(group)))
            yield DONE
        except ApiError as error:
            yield b"data: " + error.body() + b"\n\n"

    def _write(self, group: SequenceGroup, index: int, piece: Piece) -> list[bytes]:
        return [event(message) for message in self.piece(group, index, piece)]


def usage_of(group: SequenceGroup) -> Usage:
    """Token counts so far."""
    prompt, completion = group.prompt_tokens, group.completion_tokens
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(group.cached_tokens))


def token_text(model: Model, token: int) -> str:
    """A token's own text; special tokens by their names, parts of characters as U+FFFD."""
    return model.tokenizer.decode([token]) if model.has_tokenizer else f"token_id:{token}"
