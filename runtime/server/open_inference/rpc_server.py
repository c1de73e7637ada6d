"""The Open Inference Protocol's gRPC port: its limits, and what a call passes on its way in and out. Needs grpcio."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc

from aicc.runtime.errors import UsageError
from aicc.runtime.server.errors import ApiError, invalid
from aicc.runtime.server.health import RPCS
from aicc.runtime.server.open_inference.rpc_methods import SERVICE, Methods
from aicc.runtime.server.recording import RequestRecord

if TYPE_CHECKING:
    from aicc.runtime.server.app import Service

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MOST_SECONDS = 3600  # of a call on a connection that is to end, if calls have no limit of their own
_MOST_STREAMS = 100  # calls a connection may have open, each with a message in memory
_MOST_DETAILS = 2000  # characters of an error, which travels as a header
log = logging.getLogger("uvicorn.error")


async def start(
    service: Service,
    host: str,
    port: int,
    tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
    idle_seconds: float,
) -> tuple[grpc.aio.Server, int]:
    """Listen on a port of an address, on the event loop that runs.

    Args:
        service: What is served.
        host: An address, not a name.
        port: 0 takes any that is free.
        tls: PEM files of a certificate and its key; None is no TLS.
        idle_seconds: Longest a connection may stand still.

    Returns:
        The server, and the port it has.

    Raises:
        UsageError: The port cannot be had.
    """
    idle, running = _milliseconds(idle_seconds), service.limits.request_seconds
    options = [
        ("grpc.so_reuseport", 0),  # else a second server would get half of the calls
        ("grpc.max_receive_message_length", service.most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", _MOST_STREAMS),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message could become a huge one
        ("grpc.per_message_decompression", 0),
        ("grpc.max_connection_idle_ms", idle),
        # A connection with a call is not idle: that of a peer who reads no answer ends by its age.
        ("grpc.max_connection_age_ms", _milliseconds(10 * idle_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(_MOST_SECONDS if running is None else running)),
        ("grpc.server_handshake_timeout_ms", idle),
        ("grpc.keepalive_time_ms", idle),
        ("grpc.keepalive_timeout_ms", idle),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_Door(service),))
    address = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        bound = server.add_secure_port(address, _credentials(*tls)) if tls else server.add_insecure_port(address)
    except RuntimeError as error:
        raise UsageError(f"cannot listen on {host} port {port} for gRPC.", "Choose another --grpc-port.") from error
    await server.start()
    return server, bound


def _credentials(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


class _Door:
    """Takes calls of any method, as grpcio's generic handlers do: records, keys, draining and limits as over HTTP.

    A call is taken as a stream each way, of one message: so its headers are looked at before the
    message is there, and the message has a time to arrive in.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._methods = Methods(service)

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        """See grpcio."""
        return grpc.stream_stream_rpc_method_handler(partial(self._call, details.method))

    async def _call(self, method: str, messages: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        headers = [(name.encode(), _bytes(value)) for name, value in context.invocation_metadata() or ()]
        record = self._service.records.begin(headers, _address(context.peer()), "POST", method)
        service, _, name = method[1:].partition("/")
        failure: ApiError | None = None
        try:
            if service == SERVICE and name in self._methods.names:
                record.endpoint = method
            if method in RPCS:
                await self._answer(name, record, context)
            else:
                if self._service.front.keys is not None:
                    self._service.front.keys.check([value for name, value in headers if name == b"authorization"])
                with self._service.drain.answering():
                    await self._answer(name, record, context)
        except ApiError as error:
            failure = error
        except asyncio.CancelledError:
            record.status = 499
            raise
        except Exception:
            log.exception("A gRPC call failed")
            failure = ApiError(500, "The server failed on this request; its log has the reason.", "internal_error")
        finally:
            if failure is not None:
                record.status, record.error = failure.status, failure.detail.code
            self._service.records.end(record)
        trailers = [("x-request-id", record.id)]
        if failure is not None:
            trailers += failure.headers.items()
            code = _STATUS.get(failure.status, grpc.StatusCode.INTERNAL)
            await context.abort(code, failure.sentence()[:_MOST_DETAILS], tuple(trailers))
        context.set_trailing_metadata(tuple(trailers))

    async def _answer(self, name: str, record: RequestRecord, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Read the message, and write what is answered to it.

        Raises:
            ApiError: There is no such method, the message does not come in time, is one too many, or cannot be
                answered.
        """
        if not record.endpoint:
            raise ApiError(405, f"This server has no method {record.path[:200]}.", "unknown_url")
        try:
            async with asyncio.timeout(self._service.limits.body_seconds):
                message = await context.read()
        except TimeoutError:
            raise ApiError(408, "The message did not arrive in time.", "request_timeout") from None
        if not isinstance(message, bytes):
            most = self._service.most_bytes
            raise invalid(f"The call has no message, or one of more than {most} bytes.", None, "invalid_message")
        self._service.bodies.hold(record, len(message))
        answer = await self._methods.answer(name, message, record)
        await context.write(answer)  # no longer than the connection's age allows
        record.status = 200


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _address(peer: str) -> str:
    """The address in what grpcio calls a peer: ``ipv4:127.0.0.1:4000``, ``ipv6:%5B::1%5D:4000``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
