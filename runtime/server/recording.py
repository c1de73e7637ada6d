"""What is known of each request when it has been answered: its line in the access log, and its place in the metrics."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aicc.runtime.errors import UsageError

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
log = logging.getLogger("uvicorn.error")
_TRACE_CONTEXT = (b"traceparent", b"tracestate")
_MOST_METHOD = 32  # characters
_KEY = "aicc.record"  # where a request's scope has its record


@dataclass(slots=True)
class SequenceTimes:
    """When a sequence came how far, by ``time.monotonic``; 0 is not yet.

    Attributes:
        submitted: When it was handed to the engine.
        begun: First token, less the steps that read its prompt.
        first_token: When it had that.
        ended: When its newest token or its end came.
    """

    submitted: float = 0.0
    begun: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in by whoever gets to know something of it.

    Attributes:
        id: What the caller calls it, or a name made here.
        client: Address it came from.
        method: HTTP method.
        path: As it was sent, percent-encoded, without the query.
        most_seconds: Longest its answer may take; None is no limit.
        keeps_body: Whether the body is to be logged.
        started: When its headers were there, by ``time.monotonic``.
        endpoint: The route it went to, empty if none.
        seconds: From its start to the end of its answer.
        status: HTTP status, 0 as long as there is none.
        error: The API's code of what went wrong.
        model: What it asked, once that is known to exist.
        prompt_tokens: Of its prompts, each counted once.
        cached_tokens: Those of them that were in memory already.
        completion_tokens: Generated for it.
        first_token_seconds: From its start to the first token of any of its sequences.
        finish_reasons: Of its sequences: ``stop``, ``length``, ``cancelled`` or ``error``.
        sequences: When each of its sequences came how far.
        trace_context: The caller's ``traceparent`` and ``tracestate``, as they were sent.
        body: As it was sent, if it is to be logged.
        held_bytes: Of its body, as far as they count among those in memory.
    """

    id: str
    client: str
    method: str
    path: str
    most_seconds: float | None = None
    keeps_body: bool = False
    started: float = field(default_factory=time.monotonic)
    endpoint: str = ""
    seconds: float = 0.0
    status: int = 0
    error: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_seconds: float | None = None
    finish_reasons: Sequence[str] = ()
    sequences: list[SequenceTimes] = field(default_factory=list)
    trace_context: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    held_bytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        """How long its answer may still take; None is no limit."""
        return None if self.most_seconds is None else self.started + self.most_seconds - time.monotonic()

    @property
    def outcome(self) -> str:
        """How it went, in a word."""
        if self.error is None and "cancelled" in self.finish_reasons:
            return "cancelled"
        outcomes = {0: "failed", 429: "rejected", 499: "cancelled", 503: "unavailable", 504: "timeout"}
        if (known := outcomes.get(self.status)) is not None:
            return known
        if self.status >= 500 or (self.status < 400 and self.error is not None):
            return "timeout" if self.error == "request_timeout" else "failed"
        return "invalid" if self.status >= 400 else "ok"


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request that came through :class:`Recorder`."""
    record: RequestRecord = scope[_KEY]
    return record


class AccessLog:
    """One JSON object a line and request, in ASCII; never the prompt unless asked to.

    Args:
        path: File to append to, opened again when something else rotates it; None is stderr.
        prompts: Whether to log request bodies too.

    Raises:
        UsageError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, prompts: bool = False) -> None:
        self.prompts = prompts
        try:
            self._handler = logging.StreamHandler(sys.stderr) if path is None else WatchedFileHandler(path)
        except OSError as error:
            raise UsageError(f"the access log {os.fspath(path or '')} cannot be written ({error.strerror}).") from error
        self._handler.handleError = self._fail  # type: ignore[method-assign]
        self._failed = False

    def write(self, record: RequestRecord) -> None:
        """Log a request that has been answered."""
        facts: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": record.id,
            "client": record.client,
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "seconds": round(record.seconds, 6),
            "error": record.error,
            "model": record.model,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_seconds": None if record.first_token_seconds is None else round(record.first_token_seconds, 6),
            "finish_reasons": list(record.finish_reasons) or None,
            "body": None if record.body is None else record.body.decode(errors="replace"),
        }
        line = json.dumps({name: value for name, value in facts.items() if value is not None})
        self._handler.emit(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()

    def _fail(self, record: logging.LogRecord) -> None:
        """Say once that lines are lost: a disk that is full ends no request and fills no other log."""
        if not self._failed:
            self._failed = True
            log.error("The access log cannot be written, so lines of it are lost: %s", sys.exc_info()[1])


class Records:
    """Begins the record of each request, and hands it on when the answer has ended.

    Args:
        ended: Each called with each record.
        noted: Called with those that are worth a note.
        quiet_paths: Which are not, when they are answered 200.
        keeps_body: Whether records have the body.
        most_seconds: Longest an answer may take; None is no limit.
    """

    def __init__(
        self,
        ended: Sequence[Callable[[RequestRecord], None]],
        noted: Sequence[Callable[[RequestRecord], None]],
        quiet_paths: Collection[str],
        keeps_body: bool,
        most_seconds: float | None,
    ) -> None:
        self._ended = ended
        self._noted = noted
        self._quiet_paths = frozenset(quiet_paths)
        self._keeps_body = keeps_body
        self._most_seconds = most_seconds

    def begin(self, headers: Iterable[tuple[bytes, bytes]], client: str, method: str, path: str) -> RequestRecord:
        """A record; the caller's ``X-Request-Id`` is kept if it is one of up to 128 harmless characters."""
        by_name: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            by_name.setdefault(name, []).append(value)
        ids = by_name.get(b"x-request-id", [])
        sane = len(ids) == 1 and _SANE_ID.fullmatch(ids[0])
        return RequestRecord(
            id=ids[0].decode("ascii") if sane else secrets.token_hex(12),
            client=client,
            method=method[:_MOST_METHOD],
            path=path[:1000],
            most_seconds=self._most_seconds,
            keeps_body=self._keeps_body,
            trace_context={
                name.decode(): b",".join(by_name[name]).decode("latin-1") for name in _TRACE_CONTEXT if name in by_name
            },
        )

    def end(self, record: RequestRecord) -> None:
        """Count it, and note it."""
        record.seconds = time.monotonic() - record.started
        for ended in self._ended:
            ended(record)
        if record.path not in self._quiet_paths or record.status != 200:
            for note in self._noted:
                note(record)


class Recorder:
    """Gives each request its record, and its id to the answer as ``X-Request-Id``.

    Args:
        app: What answers.
        records: Where records come from and go to.
    """

    def __init__(self, app: ASGIApp, records: Records) -> None:
        self._app = app
        self._records = records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[_KEY] = self._begin(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # A bug: the outermost handler answers it, past this one.
            record.status, record.error = record.status or 500, "internal_error"
            raise
        finally:
            record.endpoint = getattr(scope.get("route"), "path", "")
            self._records.end(record)

    def _begin(self, scope: Scope) -> RequestRecord:
        client = scope["client"][0] if scope.get("client") else ""
        path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace")
        return self._records.begin(scope["headers"], client, scope["method"], path)
