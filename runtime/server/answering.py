"""How an endpoint that generates answers, whatever API it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aicc.runtime.server.bodies import json_response
from aicc.runtime.server.errors import too_late
from aicc.runtime.server.recording import RequestRecord, record_of
from aicc.runtime.server.registry import Decoder
from aicc.runtime.server.sequence_group import Outcome, SequenceGroup
from aicc.runtime.server.sse import EVENTS, EventStream, unless_disconnected

T = TypeVar("T")


class Form(Protocol):
    """How one endpoint writes what was generated."""

    def answer(self, group: SequenceGroup, outcomes: Sequence[Outcome]) -> msgspec.Struct:
        """The whole answer."""
        ...

    def events(self, group: SequenceGroup) -> AsyncGenerator[bytes, None]:
        """A whole stream, encoded; a failure is its last event."""
        ...


async def answer(
    request: Request,
    decoder: Decoder,
    sequences: int,
    prepare: Callable[[SequenceGroup], Form],
    stream: bool,
    media_type: str = EVENTS,
) -> Response:
    """Generate, and answer whole or streamed; a caller who leaves ends it.

    Args:
        request: Its body was read already.
        decoder: What generates.
        sequences: How many sequences there will be.
        prepare: Makes them, off the event loop, and says how they are written.
        stream: Whether to answer piece by piece.
        media_type: Of a streamed answer.

    Raises:
        ApiError: There is no room or no model, or what ``prepare`` raises.
    """
    record = record_of(request.scope)
    record.model = decoder.name
    group = SequenceGroup(decoder.thread, sequences, record)
    with ExitStack() as ending:
        ending.callback(group.close)
        prepared = asyncio.get_running_loop().run_in_executor(decoder.text, prepare, group)
        form = await unless_disconnected(request.receive, prepared)
        group.start()
        if stream:
            return EventStream(form.events(group), ending.pop_all().close, media_type)
        outcomes = await unless_disconnected(request.receive, group.outcomes())
    # Log-probabilities of many long prompts take seconds to write, in which others go on.
    return await asyncio.to_thread(lambda: json_response(form.answer(group, outcomes)))


async def in_time(request: Request, work: Awaitable[T]) -> T:
    """What some other work for a request gives; it is cancelled when the caller leaves or its time is over.

    Raises:
        ApiError: It took too long, or what the work raises.
        ClientDisconnect: The caller left first.
    """
    return await before_end(record_of(request.scope), unless_disconnected(request.receive, work))


async def before_end(record: RequestRecord, work: Awaitable[T]) -> T:
    """What some work gives before the time of its request is over.

    Raises:
        ApiError: It took too long, or what the work raises.
    """
    try:
        async with asyncio.timeout(record.seconds_left):
            return await work
    except TimeoutError:
        raise too_late(record.most_seconds or 0) from None
