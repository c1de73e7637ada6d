"""Where the server listens, and what a connection may do: TLS, time-outs, words that are no HTTP."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
from typing import Any, NoReturn

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from aicc.runtime.errors import UsageError
from aicc.runtime.server.errors import ApiError

_MOST_HEAD = 64 << 10  # bytes of a request before its body
_LENGTHS = {b"content-length", b"transfer-encoding"}
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?][^#]*|)", re.IGNORECASE)  # an address with its host, no user
_BACKLOG = 128  # connections the system keeps until they are accepted


class _Parser(h11.Connection):
    """h11, but for requests with two lengths, and those that name their target as they would a proxy's.

    Whoever passes the first on may go by the other length, and take what is body here for a request, or the
    other way round (RFC 9112, section 6.3). The others' address goes before their Host header (section 3.2.2).
    """

    def next_event(self) -> Any:
        """What has come next."""
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        if {name for name, _ in event.headers} >= _LENGTHS:
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if (absolute := _ABSOLUTE.fullmatch(event.target)) is None:
            return event
        host, path = absolute.groups()
        headers = [(b"host", host), *((name, value) for name, value in event.headers if name != b"host")]
        target = path if path.startswith(b"/") else b"/" + path
        return h11.Request(method=event.method, headers=headers, target=target, http_version=event.http_version)


class Connection(H11Protocol):
    """Uvicorn's connection, which gives up on peers that stand still and answers nonsense as the API does.

    Uvicorn's keep-alive time-out closes connections between two requests. Here the same time-out
    also closes one on which no request has begun or its headers do not end, and drops one whose
    peer takes in nothing of its answer.
    """

    _stalled: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Parser(h11.SERVER, _MOST_HEAD)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, but not for ever."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._unset_keepalive_if_required()
        self._unset_stalled()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; headers that do not end and what comes after an answer do not put the time-out off."""
        waiting, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if waiting is None:
            return
        if self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self.timeout_keep_alive_task = waiting
        else:
            waiting.cancel()

    def pause_writing(self) -> None:
        """The peer reads more slowly than it is written to."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._unset_stalled()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, and close."""
        open_cycle = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or (open_cycle and open_cycle.response_started):
            self.transport.close()  # in the middle of an answer there is no room for another
            return
        if open_cycle is not None:  # what was nonsense is its body, and this its answer
            open_cycle.disconnected = True
        body = ApiError(400, "This is no HTTP request that can be understood.", "invalid_http").body()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        length = (b"content-length", str(len(body)).encode())
        answer = h11.Response(status_code=400, headers=[*headers, length], reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unset_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def tls_context(
    certificate: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None
) -> ssl.SSLContext | None:
    """What TLS connections need; None if neither file is given.

    Args:
        certificate: PEM file of the server's certificate, with those between it and its root.
        key: PEM file of its private key, without a passphrase.

    Raises:
        UsageError: Only one is given, or they cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its key.", "Give both --tls-certificate and --tls-key.")
    for path in (certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"the TLS file {os.fspath(path)} cannot be read ({error.strerror}).") from error

    def no_passphrase() -> NoReturn:
        raise UsageError(f"the TLS key {os.fspath(key)} has a passphrase.", "Store it without: openssl pkey.")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"the TLS key {os.fspath(key)} is not the key of {os.fspath(certificate)}."
        else:
            what = f"{os.fspath(certificate)} and {os.fspath(key)} are no TLS certificate and key in PEM form."
        raise UsageError(what) from error
    return context


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: The address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port.", "Use 1 to 65535, or 0 for any that is free.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({_reason(error)}).", "Choose another --host or --port."
        ) from error


def _reason(error: OSError) -> str:
    """What the system says, without the address that Python adds; look-ups of names have numbers of their own."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror or error)
    return os.strerror(error.errno)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; only this one is sure to mean this machine
        return host == "localhost"
