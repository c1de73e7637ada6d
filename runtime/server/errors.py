"""Failures in the APIs' own shapes.

OpenAI's is ``{"error": {"message", "type", "param", "code"}}``, and is that of paths that no API has.
Ollama's and the Open Inference Protocol's is ``{"error": message}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aicc.runtime.errors import AiccError, ContextLengthError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.server.recording import record_of

PLAIN = ("/api/", "/v2/")  # how paths of the APIs begin whose errors are a message and nothing else
RETRY_SECONDS = 1  # what Retry-After asks for: a queue moves within this
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*?)(?:\[\.\.\.\])?`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"^Object missing required field `(?P<field>.*)`$")


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """Every answer that is not a success; its message alone in the plain shape."""

    error: ErrorDetail | str


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status code.
        message: What is wrong, for the caller's developer.
        code: OpenAI's machine-readable code, or one in its manner.
        param: Path of the request field at fault.
        retry: Whether the same request may succeed soon; sends ``Retry-After``.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message, _type_of(status), param, code)
        self.headers = {"retry-after": str(RETRY_SECONDS)} if retry else {}
        if status == HTTPStatus.REQUEST_TIMEOUT:
            self.headers["connection"] = "close"  # what still comes of the request is none

    def body(self, plain: bool = False) -> bytes:
        """The JSON to send, in OpenAI's shape or the plain one."""
        return msgspec.json.encode(ErrorBody(self.sentence() if plain else self.detail))

    def response(self, scope: Scope) -> Response:
        """The whole answer to a request."""
        plain = f"{scope['path']}/".startswith(PLAIN)
        return Response(self.body(plain), self.status, self.headers, "application/json")

    def sentence(self) -> str:
        """The message, with the field at fault where it does not name that itself."""
        message, param = self.detail.message, self.detail.param
        return message if param is None or f"'{param}'" in message else f"'{param}': {message}"


def _type_of(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 about one field."""
    return ApiError(400, message, code, param)


def unimplemented(param: str) -> ApiError:
    """A 400 about a field that the API has and this server has not."""
    message = f"'{param}' is not implemented by this server. Leave it out."
    return invalid(message, param or None, "unsupported_parameter")


def too_late(seconds: float) -> ApiError:
    """The 504 of an answer that did not end in time."""
    return ApiError(504, f"The answer took longer than the {seconds:g} s this server gives one.", "request_timeout")


def unavailable() -> ApiError:
    """The 503 of a model that will not be back before the server is started again."""
    return ApiError(503, "The model has failed or is being shut down.", "model_unavailable")


def decode_error(error: Exception, inside: str = "") -> ApiError:
    """What was wrong with a request body, by field where there is one.

    Args:
        error: What ``msgspec.json.Decoder.decode`` raised.
        inside: The field it was raised about, if it was not the whole body.
    """
    if not isinstance(error, msgspec.ValidationError):
        said = str(error).removeprefix("JSON is malformed: ")
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else _sentence(said)
        return ApiError(400, f"The body is not valid JSON: {reason}.", "invalid_json")
    found = _WHERE.match(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    path = _join(inside, path) if path else inside
    if unknown := _UNKNOWN_FIELD.match(what):
        param = _join(path, unknown["field"][:100])
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if missing := _MISSING_FIELD.match(what):
        param = _join(path, missing["field"])
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if what.startswith("Expected `null`, "):
        return unimplemented(path)
    where = f"'{path}'" if path else "the body"
    return invalid(f"Invalid value for {where}: {_sentence(what)}.", path or None)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _sentence(text: str) -> str:
    """A library's message as the second half of a sentence, of bounded length."""
    text = text.replace("`", "'")[:300].rstrip(".")
    return text[:1].lower() + text[1:]


def from_foreseen(error: AiccError, param: str | None = None) -> ApiError:
    """The answer for a failure the runtime foresees.

    Args:
        error: What the runtime raised.
        param: The field that is at fault when the request is.
    """
    if isinstance(error, ContextLengthError):
        return invalid(str(error), param, "context_length_exceeded")
    if isinstance(error, UsageError | UnsupportedError):
        return invalid(str(error), param)
    if isinstance(error, ResourceError):
        return ApiError(503, str(error), "out_of_capacity", retry=True)
    return ApiError(500, str(error), "internal_error")


async def on_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of :class:`ApiError`."""
    assert isinstance(error, ApiError)
    record_of(request.scope).error = error.detail.code
    return error.response(request.scope)


async def answer_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error from in front of the routes."""
    record_of(scope).error = error.detail.code
    await error.response(scope)(scope, receive, send)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    method, path = record_of(request.scope).method, request.url.path[:200]
    messages: Mapping[int, tuple[str, str]] = {
        404: (f"Unknown path: {method} {path}.", "unknown_url"),
        405: (f"{method} is not allowed on {path}.", "method_not_allowed"),
    }
    message, code = messages.get(error.status_code, (error.detail, "http_error"))
    record_of(request.scope).error = code
    answer = ApiError(error.status_code, message, code).response(request.scope)
    answer.headers.update(error.headers or {})
    return answer


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The caller left before the answer; the status is what proxies' logs call that."""
    return Response(status_code=499)


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything unforeseen: the traceback goes to the server's log, never to the caller."""
    failure = ApiError(500, "The server failed on this request; its log has the reason.", "internal_error")
    answer = failure.response(request.scope)
    answer.headers["x-request-id"] = record_of(request.scope).id
    return answer
