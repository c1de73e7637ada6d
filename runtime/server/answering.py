"""How an endpoint that generates answers, whatever API it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aicc.runtime.server.bodies import json_response
from aicc.runtime.server.generation import Generation, Outcome
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Decoder
from aicc.runtime.server.sse import EventStream, unless_disconnected


class Form(Protocol):
    """How one endpoint writes what was generated."""

    def answer(self, generation: Generation, outcomes: Sequence[Outcome]) -> msgspec.Struct:
        """The whole answer."""
        ...

    def events(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """A whole stream, encoded; a failure is its last event."""
        ...


async def answer(
    request: Request,
    decoder: Decoder,
    sequences: int,
    prepare: Callable[[Generation], Form],
    stream: bool,
) -> Response:
    """Generate, and answer whole or streamed; a caller who leaves ends it.

    Args:
        request: Its body was read already.
        decoder: What generates.
        sequences: How many sequences there will be.
        prepare: Makes them, off the event loop, and says how they are written.
        stream: Whether to answer piece by piece.

    Raises:
        ApiError: There is no room or no model, or what ``prepare`` raises.
    """
    record = record_of(request.scope)
    record.model = decoder.name
    generation = Generation(decoder.thread, sequences, record)
    with ExitStack() as ending:
        ending.callback(generation.close)
        prepared = asyncio.get_running_loop().run_in_executor(decoder.text, prepare, generation)
        form = await unless_disconnected(request.receive, prepared)
        generation.start()
        if stream:
            return EventStream(form.events(generation), ending.pop_all().close)
        outcomes = await unless_disconnected(request.receive, generation.outcomes())
    return json_response(form.answer(generation, outcomes))
