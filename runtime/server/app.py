"""The application: which APIs are spoken over which models, and what stands in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from aicc.runtime.generator import Model
from aicc.runtime.server import chat_page, health, ollama, open_inference, openai
from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.draining import Drain, Draining
from aicc.runtime.server.errors import ApiError, on_api_error, on_bug, on_disconnect, on_http_error
from aicc.runtime.server.hosts import LOOPBACK, KnownHosts
from aicc.runtime.server.keys import ApiKeys, RequireKey
from aicc.runtime.server.metrics import PATH as METRICS
from aicc.runtime.server.metrics import Metrics
from aicc.runtime.server.recording import AccessLog, Recorder, Records
from aicc.runtime.server.registry import Decoder, Registry, Tensors, served
from aicc.runtime.server.tracing import Tracing
from aicc.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes on.

    Attributes:
        sequences: Most sequences running, waiting or being prepared for each model; more are answered 429.
        body_bytes: Largest request body; None is 1 MiB, or 64 bytes for each token of the longest
            context if that is more. Tokenising takes a second for each MiB, one request at a time.
        body_seconds: Longest a body may take to arrive.
        request_seconds: Longest an answer may take, waiting included; None is no limit.
    """

    sequences: int = 128
    body_bytes: int | None = None
    body_seconds: float = 30.0
    request_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Front:
    """What stands between the network and the models.

    Attributes:
        hosts: What a request's Host header may name, IPv6 addresses without brackets; None is
            anything, which also lets in web pages that have their name resolve to this machine.
        keys: Who may ask; None is everybody.
        cors_origins: Origins whose web pages may ask: ``https://example.com``.
        access_log: Where requests are logged; None is nowhere.
        tracing: Where their spans go; None is nowhere.
    """

    hosts: Collection[str] | None = LOOPBACK
    keys: ApiKeys | None = None
    cors_origins: Collection[str] = ()
    access_log: AccessLog | None = None
    tracing: Tracing | None = None


class Service:
    """What is served, and what every way in shares.

    Args:
        registry: Its models.
        limits: What to take on.
        front: Who may ask, and what is logged.

    Attributes:
        most_bytes: Largest message.
        drain: Whether the server is ending.
        metrics: What it counts.
        bodies: What reads requests' bodies.
        records: Where those of requests come from and go to.
    """

    def __init__(self, registry: Registry, limits: Limits = Limits(), front: Front = Front()) -> None:
        self.registry = registry
        self.limits = limits
        self.front = front
        self.most_bytes = limits.body_bytes or _body_bytes(registry)
        self.drain = Drain()
        self.metrics = Metrics(registry)
        log, tracing = front.access_log, front.tracing
        noted = [*([log.write] if log else []), *([tracing.ended] if tracing else [])]
        probes = health.PATHS | health.RPCS
        self.bodies = BodyReader(self.most_bytes, limits.body_seconds)
        ended = [self.metrics.ended, self.bodies.ended]
        self.records = Records(ended, noted, probes, bool(log and log.prompts), limits.request_seconds)


def create_app(
    models: Model | Session | Mapping[str, Model | Session],
    limits: Limits = Limits(),
    front: Front = Front(),
) -> Starlette:
    """The API over loaded models, for any ASGI server; the caller closes the models afterwards.

    Args:
        models: Used by nobody else while they are served: one, called what its artifact is called,
            or several by the names requests call them.
        limits: What to take on.
        front: Who may ask, and what is logged.

    Raises:
        UsageError: There is no model.
    """
    named = {models.manifest.name: models} if isinstance(models, Model | Session) else models
    registry = Registry([_loaded(name, model, limits.sequences) for name, model in named.items()])
    return build_app(Service(registry, limits, front))


def _loaded(name: str, model: Model | Session, most: int) -> Decoder | Tensors:
    return served(name, model.manifest, lambda: model, most)


def build_app(service: Service) -> Starlette:
    """The API over models whose threads are started and stopped with the application."""

    registry = service.registry

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        for model in registry:
            model.thread.start()
        yield
        await asyncio.gather(*(asyncio.to_thread(model.stop) for model in registry))
        if service.front.access_log is not None:
            service.front.access_log.close()
        if service.front.tracing is not None:
            await asyncio.to_thread(service.front.tracing.close)

    return Starlette(
        routes=[
            *health.routes(registry, service.drain),
            *service.metrics.routes(),
            *chat_page.routes(),
            *openai.routes(registry, service.bodies),
            *ollama.routes(registry, service.bodies),
            *open_inference.routes(registry, service.bodies),
        ],
        middleware=_middleware(service),
        exception_handlers={
            ApiError: on_api_error,
            ClientDisconnect: on_disconnect,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
        lifespan=lifespan,
    )


def _middleware(service: Service) -> list[Middleware]:
    """What a request passes on its way to a route, outermost first."""
    front, probes = service.front, health.PATHS
    passed = [Middleware(Recorder, service.records)]
    if front.hosts is not None:
        passed.append(Middleware(KnownHosts, front.hosts))
    if front.cors_origins:
        # Before the keys: a browser asks whether it may send one without sending it.
        passed.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(front.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["retry-after", "x-request-id"],
            )
        )
    if front.keys is not None:
        passed.append(Middleware(RequireKey, front.keys, probes | chat_page.PATHS))
    passed.append(Middleware(Draining, service.drain, probes | {METRICS}))
    return passed


def _body_bytes(registry: Registry) -> int:
    contexts = (model.manifest.llm.context_length for model in registry if model.manifest.llm)
    return max(1 << 20, 64 * max(contexts, default=0))
