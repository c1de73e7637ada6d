"""The answers of ``/v1/chat/completions``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from msgspec import UNSET

from aicc.runtime.generator import Model
from aicc.runtime.request import Piece
from aicc.runtime.server.conversation import said_by
from aicc.runtime.server.openai.chat_schema import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    DeltaFunction,
    DeltaToolCall,
    FinishReason,
    TokenLogprob,
    ToolCall,
    TopLogprob,
)
from aicc.runtime.server.openai.forms import Logprobs, StreamedForm, token_text, usage_of
from aicc.runtime.server.openai.schema import Usage
from aicc.runtime.server.sequence_group import Outcome, SequenceGroup, finish_reason
from aicc.runtime.tools.parser import Arguments, Call, Said, Text, ToolCallParser


class ChatForm(StreamedForm):
    """Writes conversations' answers; arguments as :class:`StreamedForm`.

    Args:
        parser: Makes what reads calls of functions out of one choice; None if there are no functions.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        fingerprint: str,
        include_usage: bool,
        parser: Callable[[], ToolCallParser] | None = None,
    ) -> None:
        super().__init__(model, name, fingerprint, include_usage)
        self._parsers: defaultdict[int, ToolCallParser] | None = None if parser is None else defaultdict(parser)

    def answer(self, group: SequenceGroup, outcomes: Sequence[Outcome]) -> ChatCompletion:
        """See :class:`aicc.runtime.server.answering.Form`."""
        choices = [self._choice(group, i, outcome) for i, outcome in enumerate(outcomes)]
        usage = usage_of(group)
        return ChatCompletion("chatcmpl-" + self._id, self._created, self._name, choices, usage, self._fingerprint)

    def opening(self, index: int) -> Iterator[ChatChunk]:
        """See :class:`StreamedForm`."""
        yield self._chunk([ChunkChoice(index, Delta("assistant", ""))])

    def piece(self, group: SequenceGroup, index: int, piece: Piece) -> Iterator[ChatChunk]:
        """See :class:`StreamedForm`."""
        logprobs = self._logprobs(group.logprobs(piece))
        deltas = [_delta(said) for said in self._said(index, piece)] or [Delta(content="")] * (logprobs is not None)
        for i, delta in enumerate(deltas):
            yield self._chunk([ChunkChoice(index, delta, None, logprobs if i == 0 else None)])
        if piece.finish_reason is not None:
            yield self._chunk([ChunkChoice(index, Delta(), self._finish(index, piece))])

    def usage(self, usage: Usage) -> ChatChunk:
        """See :class:`StreamedForm`."""
        return self._chunk([], usage)

    def _choice(self, group: SequenceGroup, index: int, outcome: Outcome) -> ChatChoice:
        said = [each for piece in outcome.pieces for each in self._said(index, piece)]
        text = "".join(each.text for each in said if isinstance(each, Text))
        calls = [
            ToolCall(call.id, CalledFunction(call.name, _arguments(said, call)))
            for call in said
            if isinstance(call, Call)
        ]
        message = AnswerMessage((text if text.strip() else None) if calls else text, calls or UNSET)
        logprobs = [each for piece in outcome.pieces for each in group.logprobs(piece)]
        finish = self._finish(index, outcome.pieces[-1])
        return ChatChoice(index, message, finish, self._logprobs(logprobs))

    def _said(self, index: int, piece: Piece) -> list[Said]:
        return said_by(piece, None if self._parsers is None else self._parsers[index])

    def _finish(self, index: int, piece: Piece) -> FinishReason:
        reason = finish_reason(piece) or "stop"
        called = self._parsers is not None and self._parsers[index].calls
        return "tool_calls" if called and reason == "stop" else reason

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            "chatcmpl-" + self._id, self._created, self._name, choices, self._fingerprint, usage or self._no_usage
        )

    def _logprobs(self, tokens: Logprobs) -> ChatLogprobs | None:
        if not tokens:
            return None
        content = []
        for token, found in tokens:
            texts = [token_text(self._model, id) for id, _ in found.top]
            top = [TopLogprob(text, value, _utf8(text)) for text, (_, value) in zip(texts, found.top, strict=True)]
            text = token_text(self._model, token)
            content.append(TokenLogprob(text, found.token, _utf8(text), top))
        return ChatLogprobs(content)


def _delta(said: Said) -> Delta:
    if isinstance(said, Text):
        return Delta(content=said.text)
    if isinstance(said, Call):
        return Delta(tool_calls=[DeltaToolCall(said.index, DeltaFunction(said.name, ""), said.id, "function")])
    return Delta(tool_calls=[DeltaToolCall(said.index, DeltaFunction(arguments=said.text))])


def _arguments(said: Sequence[Said], call: Call) -> str:
    return "".join(each.text for each in said if isinstance(each, Arguments) and each.index == call.index)


def _utf8(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())
