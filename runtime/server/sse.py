"""Streamed answers, and work that ends when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aicc.runtime.server.errors import unavailable

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


def event(message: msgspec.Struct) -> bytes:
    """One event carrying a message as JSON."""
    return b"data: " + msgspec.json.encode(message) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """Do some work, and cancel it as soon as the caller is gone.

    Args:
        receive: The connection, its request body already read.
        work: What to do; its exceptions are raised here.

    Returns:
        What the work returns.

    Raises:
        ClientDisconnect: The caller left first.
        ApiError: The server ends, and the work was not begun.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        if task.cancelled():  # by the thread it waited for, which ends with the server
            raise unavailable()
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they come, until they end or the caller goes away.

    Args:
        events: Encoded events.
        close: Called once at the end, however it ends, even if nothing was sent.
        media_type: How the events are encoded.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], None], media_type: str) -> None:
        # Proxies must not collect events: a reader wants each as it is made.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        try:
            with suppress(ClientDisconnect):
                await unless_disconnected(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events):
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
