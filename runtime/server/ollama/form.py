"""The answers of ``/api/chat`` and ``/api/generate``, whole or an object a line."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from aicc.runtime.request import Piece
from aicc.runtime.server.conversation import said_by
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.ollama.schema import Answer, AnswerMessage, CalledFunction, ToolCall
from aicc.runtime.server.sequence_group import Outcome, SequenceGroup, finish_reason
from aicc.runtime.tools.parser import Arguments, Call, Text, ToolCallParser

LINES = "application/x-ndjson"


class OllamaForm:
    """Writes one answer.

    Args:
        name: What the model is called.
        started: When the request's headers were there, by ``time.monotonic``.
        chat: Whether it is a message, else a text.
        parser: Makes what reads calls of functions out of it; None if there are no functions.
    """

    def __init__(
        self, name: str, started: float, chat: bool, parser: Callable[[], ToolCallParser] | None = None
    ) -> None:
        self._name = name
        self._started = started
        self._chat = chat
        self._parser = parser() if parser is not None else None
        self._calls: list[tuple[Call, list[str]]] = []  # with their arguments as they come

    def answer(self, group: SequenceGroup, outcomes: Sequence[Outcome]) -> Answer:
        """See :class:`aicc.runtime.server.answering.Form`."""
        pieces = outcomes[0].pieces
        text = "".join([self._text(piece) for piece in pieces])
        return self._last(group, pieces[-1], text, self._called())

    async def events(self, group: SequenceGroup) -> AsyncGenerator[bytes, None]:
        """See :class:`aicc.runtime.server.answering.Form`."""
        try:
            async for _, piece in group.pieces():
                text = self._text(piece)
                calls = self._called() if piece.finish_reason is not None else []
                if text or calls:
                    yield _line(self._answer(text, calls, done=False))
                if piece.finish_reason is not None:
                    yield _line(self._last(group, piece, "", []))
        except ApiError as error:
            yield error.body(plain=True) + b"\n"

    def _text(self, piece: Piece) -> str:
        """What a piece says besides calls, which are kept."""
        text = ""
        for said in said_by(piece, self._parser):
            if isinstance(said, Text):
                text += said.text
            elif isinstance(said, Call):
                self._calls.append((said, []))
            elif isinstance(said, Arguments):
                self._calls[said.index][1].append(said.text)
        return text

    def _called(self) -> list[ToolCall]:
        """All calls whose arguments are complete: the last one's are not where a limit cut the answer."""
        calls = []
        for call, parts in self._calls:
            try:
                arguments = json.loads("".join(parts))
            except (ValueError, RecursionError):
                continue
            calls.append(ToolCall(CalledFunction(call.name, arguments, call.index), call.id))
        return calls

    def _last(self, group: SequenceGroup, piece: Piece, text: str, calls: list[ToolCall]) -> Answer:
        timings = group.timings(0)
        return self._answer(
            text,
            calls,
            done=True,
            done_reason=finish_reason(piece) or "stop",
            total_duration=_nanoseconds(time.monotonic() - self._started),
            load_duration=0,
            prompt_eval_count=timings.prompt_tokens,
            prompt_eval_duration=_nanoseconds(timings.prefill_s),
            eval_count=timings.completion_tokens,
            eval_duration=_nanoseconds(timings.decode_s),
        )

    def _answer(self, text: str, calls: list[ToolCall], **more: Any) -> Answer:
        now = datetime.now(UTC).isoformat()
        if self._chat:
            return Answer(model=self._name, created_at=now, message=AnswerMessage(text, calls or UNSET), **more)
        return Answer(model=self._name, created_at=now, response=text, **more)


def _line(answer: Answer) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
