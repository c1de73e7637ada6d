"""The routes of the HTTP API."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.artifact import Manifest
from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.server.answers import ChatForm, CompletionForm, events
from aicc.runtime.server.engine_thread import EngineThread
from aicc.runtime.server.errors import (
    ApiError,
    decode_error,
    from_foreseen,
    on_api_error,
    on_bug,
    on_disconnect,
    on_http_error,
)
from aicc.runtime.server.generation import Generation, chat_messages, check_fields, completion_prompts
from aicc.runtime.server.hosts import LOOPBACK, KnownHosts
from aicc.runtime.server.schema import (
    ChatRequest,
    CompletionRequest,
    ModelCard,
    ModelList,
    Readiness,
    SamplingRequest,
)
from aicc.runtime.server.sse import EventStream, unless_disconnected

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes on.

    Attributes:
        sequences: Most sequences running, waiting or being prepared; more are answered 429.
        body_bytes: Largest request body; None is 1 MiB, or 64 bytes for each token of the context
            if that is more. Tokenising takes a second for each MiB, one request at a time.
        body_seconds: Longest a body may take to arrive.
    """

    sequences: int = 128
    body_bytes: int | None = None
    body_seconds: float = 30.0


def create_app(
    model: Model,
    alias: str | None = None,
    limits: Limits = Limits(),
    hosts: Collection[str] | None = LOOPBACK,
) -> Starlette:
    """The API over a loaded model, for any ASGI server; the caller closes the model afterwards.

    Args:
        model: Used by nobody else while it is served.
        alias: What requests call it; None is the artifact's own name.
        limits: What to take on.
        hosts: What a request's Host header may name, IPv6 addresses without brackets; None is
            anything, which also lets in web pages that have their name resolve to this machine.
    """
    return build_app(EngineThread(lambda: model, limits.sequences), model.manifest, alias, limits, hosts)


def build_app(
    engine: EngineThread, manifest: Manifest, alias: str | None, limits: Limits, hosts: Collection[str] | None
) -> Starlette:
    """The API over an engine thread, which is started and stopped with the application."""
    api = Api(engine, manifest, alias, limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)
        api.close()

    return Starlette(
        routes=[
            Route("/v1/models", api.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", api.show_model, methods=["GET"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.complete, methods=["POST"]),
            Route("/health/live", api.live, methods=["GET"]),
            Route("/health/ready", api.ready, methods=["GET"]),
        ],
        middleware=[] if hosts is None else [Middleware(KnownHosts, hosts)],
        exception_handlers={
            ApiError: on_api_error,
            ClientDisconnect: on_disconnect,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )


class Api:
    """The endpoints over one model.

    Args:
        engine: Where generations run.
        manifest: The model's.
        alias: What requests call the model; None is the manifest's name.
        limits: What to take on.
    """

    def __init__(self, engine: EngineThread, manifest: Manifest, alias: str | None, limits: Limits) -> None:
        self._engine = engine
        context_length = manifest.llm.context_length if manifest.llm else 0
        self._body_bytes = limits.body_bytes or max(1 << 20, 64 * context_length)
        self._body_seconds = limits.body_seconds
        self._card = ModelCard(alias or manifest.name, int(time.time()))
        self._fingerprint = "fp_" + hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()[:12]
        self._chat_decoder = msgspec.json.Decoder(ChatRequest)
        self._completion_decoder = msgspec.json.Decoder(CompletionRequest)
        # One thread for all text, off the event loop: tokenizers share state between calls.
        self._text_thread = ThreadPoolExecutor(1, "aicc-text")

    def close(self) -> None:
        """End the text thread."""
        self._text_thread.shutdown(wait=False, cancel_futures=True)

    async def list_models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return _json(ModelList([self._card]))

    async def show_model(self, request: Request) -> Response:
        """``GET /v1/models/{id}``."""
        self._check_name(request.path_params["name"])
        return _json(self._card)

    async def live(self, request: Request) -> Response:
        """``GET /health/live``: 503 when only a restart can help."""
        failed = self._engine.state == "failed"
        return _json(self._readiness(), 503 if failed else 200)

    async def ready(self, request: Request) -> Response:
        """``GET /health/ready``: whether requests are served now, and how busy it is."""
        return _json(self._readiness(), 200 if self._engine.state == "ready" else 503)

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        asked = _decode(self._chat_decoder, await self._body(request))

        def prepare(generation: Generation) -> None:
            try:
                ids = generation.model.chat_ids(chat_messages(asked))
            except AiccError as error:
                raise from_foreseen(error, "messages") from error
            generation.prepare([ids], asked, "messages")

        return await self._answer(request, asked, asked.n or 1, prepare, ChatForm)

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        asked = _decode(self._completion_decoder, await self._body(request))
        prompts = completion_prompts(asked)

        def prepare(generation: Generation) -> None:
            generation.prepare(prompts, asked, "prompt")

        return await self._answer(request, asked, len(prompts) * (asked.n or 1), prepare, CompletionForm)

    async def _answer(
        self,
        request: Request,
        asked: SamplingRequest,
        sequences: int,
        prepare: Callable[[Generation], None],
        form_type: type[ChatForm] | type[CompletionForm],
    ) -> Response:
        self._check_name(asked.model)
        check_fields(asked)
        generation = Generation(self._engine, sequences)
        with ExitStack() as ending:
            ending.callback(generation.close)
            prepared = asyncio.get_running_loop().run_in_executor(self._text_thread, prepare, generation)
            await unless_disconnected(request.receive, prepared)
            generation.start()
            include_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            form = form_type(generation.model, self._card.id, self._fingerprint, include_usage)
            if asked.stream:
                return EventStream(events(form, generation, include_usage), ending.pop_all().close)
            outcomes = await unless_disconnected(request.receive, generation.outcomes())
        return _json(form.answer(outcomes, generation.usage))

    def _check_name(self, name: str) -> None:
        if name != self._card.id:
            message = f"The model '{name[:200]}' does not exist. This server has '{self._card.id}'."
            raise ApiError(404, message, "model_not_found", "model")

    def _readiness(self) -> Readiness:
        model = self._engine.model
        return Readiness(
            status=self._engine.state,
            model=self._card.id,
            device=None if model is None else model.device,
            sequences=self._engine.open_sequences,
            kv_pages=0 if model is None else model.engine.page_count,
            kv_pages_free=0 if model is None else model.engine.free_pages,
        )

    async def _body(self, request: Request) -> bytes:
        """The request's body, bounded in size and time.

        A body that is too large is read to its end and thrown away: a caller that is still sending
        would not see the answer.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            # Which also keeps web pages out: a browser asks before it sends this type elsewhere.
            raise ApiError(415, "The body must be sent as Content-Type: application/json.", "unsupported_media_type")
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= self._body_bytes:
                        body += chunk
        except TimeoutError:
            raise ApiError(408, "The body did not arrive in time.", "request_timeout") from None
        if size > self._body_bytes:
            raise ApiError(413, f"The body is larger than {self._body_bytes} bytes.", "request_too_large")
        return bytes(body)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise decode_error(error) from None


def _json(message: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(message), status, media_type="application/json")
