"""Request bodies in, JSON answers out."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aicc.runtime.server.errors import ApiError, decode_error
from aicc.runtime.server.recording import RequestRecord, record_of

_SMALL = 64 << 10  # bytes of a body that are always taken: a connection has buffers as large
_MOST_TOGETHER = 32  # bodies of the largest size in memory
T = TypeVar("T")


class BodyReader:
    """Reads bodies, bounded in size and time, each and all together.

    A large body counts until its request is answered: what was read from it is in memory so long.

    Args:
        most_bytes: Largest body.
        seconds: Longest a body may take to arrive.
    """

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._free = _MOST_TOGETHER * most_bytes

    async def message(self, request: Request, decoder: msgspec.json.Decoder[T]) -> T:
        """The request's body as a message.

        Raises:
            ApiError: It is not one; the field at fault is named.
        """
        if media_type(request) != "application/json":
            # Which also keeps web pages out: a browser asks before it sends this type elsewhere.
            raise ApiError(415, "The body must be sent as Content-Type: application/json.", "unsupported_media_type")
        body = await self.read(request)
        record = record_of(request.scope)
        if record.keeps_body:
            record.body = body
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decode_error(error) from None

    async def read(self, request: Request) -> bytes:
        """The request's body.

        One that is too large, or large where there is no room, is read to its end and thrown away: a
        caller that is still sending would not see the answer.

        Raises:
            ApiError: It is compressed, too large, one too many, or does not arrive in time.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "Bodies may not be compressed.", "unsupported_encoding")
        record = record_of(request.scope)
        body = bytearray()
        size, full = 0, False
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    full = full or not self._hold(record, min(size, self._most_bytes))
                    if size <= self._most_bytes and not full:
                        body += chunk
        except TimeoutError:
            raise ApiError(408, "The body did not arrive in time.", "request_timeout") from None
        if size > self._most_bytes:
            raise ApiError(413, f"The body is larger than {self._most_bytes} bytes.", "request_too_large")
        if full:
            raise _full()
        return bytes(body)

    def hold(self, record: RequestRecord, size: int) -> None:
        """Take room for a body of so many bytes that another way in has read.

        Raises:
            ApiError: There is none.
        """
        if not self._hold(record, size):
            raise _full()

    def _hold(self, record: RequestRecord, size: int) -> bool:
        """Take room for so many bytes of a body, unless there is none."""
        more = max(0, size - _SMALL - record.held_bytes)
        if more > self._free:
            return False
        self._free -= more
        record.held_bytes += more
        return True

    def ended(self, record: RequestRecord) -> None:
        """Have a request's room back."""
        self._free += record.held_bytes


def media_type(request: Request) -> str:
    """What a body is sent as, in lower case and without parameters; empty if the request does not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _full() -> ApiError:
    return ApiError(429, "The server has too many large bodies in memory. Try again later.", "queue_full", retry=True)


def json_response(message: msgspec.Struct, status: int = 200) -> Response:
    """An answer that is one message."""
    return Response(msgspec.json.encode(message), status, media_type="application/json")
