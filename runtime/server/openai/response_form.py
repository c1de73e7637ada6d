"""The answers of ``/v1/responses``, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import msgspec
from msgspec import UNSET

from aicc.runtime.request import Piece
from aicc.runtime.server.conversation import said_by
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.openai.chat_schema import TextFormat
from aicc.runtime.server.openai.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Completed,
    Created,
    Event,
    Failed,
    Incomplete,
    InProgress,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    TextDelta,
    TextDone,
)
from aicc.runtime.server.openai.response_schema import (
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponseAnswer,
    ResponseRequest,
    ResponseTextOptions,
    ResponseUsage,
    Status,
)
from aicc.runtime.server.sequence_group import Outcome, SequenceGroup, finish_reason
from aicc.runtime.tools.parser import Arguments, Call, Said, Text, ToolCallParser


class ResponseForm:
    """Writes one response.

    Args:
        asked: The request.
        parser: Makes what reads calls of functions; None if there are no functions.
    """

    def __init__(self, asked: ResponseRequest, parser: Callable[[], ToolCallParser] | None) -> None:
        self._parser = None if parser is None else parser()
        self._output: list[OutputItem] = []
        self._sequence = 0
        self._blank = ResponseAnswer(
            id="resp_" + secrets.token_hex(12),
            created_at=int(time.time()),
            model=asked.model,
            status="in_progress",
            output=[],
            usage=None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            text=ResponseTextOptions((asked.text and asked.text.format) or TextFormat()),
            tools=asked.tools or [],
            tool_choice=asked.tool_choice or "auto",
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            user=UNSET if asked.user is None else asked.user,
        )

    def answer(self, group: SequenceGroup, outcomes: Sequence[Outcome]) -> ResponseAnswer:
        """See :class:`aicc.runtime.server.answering.Form`."""
        pieces = outcomes[0].pieces
        for piece in pieces:
            for _ in self._events_of(piece):
                pass  # the output grows by them
        return self._answer(group, pieces[-1])

    async def events(self, group: SequenceGroup) -> AsyncGenerator[bytes, None]:
        """See :class:`aicc.runtime.server.answering.Form`."""
        try:
            yield self._sent(Created(response=self._blank))
            yield self._sent(InProgress(response=self._blank))
            async for _, piece in group.pieces():
                for event in self._events_of(piece):
                    yield self._sent(event)
            answer = self._answer(group, piece)
            ended = Completed(response=answer) if answer.status == "completed" else Incomplete(response=answer)
            yield self._sent(ended)
        except ApiError as error:
            detail = error.detail
            yield self._sent(Failed(message=detail.message, code=detail.code, param=detail.param))

    def _sent(self, event: Event) -> bytes:
        event.sequence_number = self._sequence
        self._sequence += 1
        return f"event: {event.__struct_config__.tag}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"

    def _answer(self, group: SequenceGroup, last: Piece) -> ResponseAnswer:
        status = _status(last)
        read, made = group.prompt_tokens, group.completion_tokens
        usage = ResponseUsage(read, made, read + made, InputTokensDetails(group.cached_tokens))
        details = IncompleteDetails() if status == "incomplete" else None
        return msgspec.structs.replace(
            self._blank, status=status, output=self._output, usage=usage, incomplete_details=details
        )

    def _events_of(self, piece: Piece) -> Iterator[Event]:
        for said in said_by(piece, self._parser):
            yield from self._event_of(said)
        if piece.finish_reason is not None:
            if not self._output:
                yield from self._begin_message()
            yield from self._end_item(_status(piece))

    def _event_of(self, said: Said) -> Iterator[Event]:
        index = len(self._output) - 1
        if isinstance(said, Text):
            if not self._output or not isinstance(self._output[-1], OutputMessage):
                yield from self._begin_message()
                index += 1
            message = self._output[-1]
            assert isinstance(message, OutputMessage)
            message.content[0].text += said.text
            yield TextDelta(item_id=message.id, output_index=index, delta=said.text)
        elif isinstance(said, Call):
            yield from self._end_item("completed")
            call = OutputCall("fc_" + secrets.token_hex(12), said.id, said.name)
            self._output.append(call)
            yield ItemAdded(output_index=index + 1, item=call)
        elif isinstance(said, Arguments):
            call = self._output[-1]  # type: ignore[assignment]
            call.arguments += said.text
            yield ArgumentsDelta(item_id=call.id, output_index=index, delta=said.text)

    def _begin_message(self) -> Iterator[Event]:
        yield from self._end_item("completed")
        message = OutputMessage("msg_" + secrets.token_hex(12), [])
        self._output.append(message)
        index = len(self._output) - 1
        yield ItemAdded(output_index=index, item=message)
        message.content.append(OutputText())
        yield PartAdded(item_id=message.id, output_index=index, part=message.content[0])

    def _end_item(self, status: Status) -> Iterator[Event]:
        if not self._output:
            return
        index, item = len(self._output) - 1, self._output[-1]
        item.status = status
        if isinstance(item, OutputMessage):
            part = item.content[0]
            yield TextDone(item_id=item.id, output_index=index, text=part.text)
            yield PartDone(item_id=item.id, output_index=index, part=part)
        else:
            yield ArgumentsDone(item_id=item.id, output_index=index, name=item.name, arguments=item.arguments)
        yield ItemDone(output_index=index, item=item)


def _status(last: Piece) -> Status:
    return "incomplete" if finish_reason(last) == "length" else "completed"
