"""Whether the server lives, whether it serves, and how busy it is."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.generator import Model
from aicc.runtime.server.bodies import json_response
from aicc.runtime.server.model_thread import State
from aicc.runtime.server.registry import Registry, Served

_WORST_FIRST: tuple[State, ...] = ("failed", "stopped", "loading", "ready")


class ModelReadiness(msgspec.Struct, frozen=True):
    """One model. ``kv_pages`` are of a language model's memory, 0 for others."""

    name: str
    status: State
    device: str | None
    sequences: int  # running, waiting or being prepared
    kv_pages: int
    kv_pages_free: int


class Readiness(msgspec.Struct, frozen=True):
    """Answer of the health endpoints; the status is the worst of the models'."""

    status: State
    models: list[ModelReadiness]


def routes(registry: Registry) -> list[Route]:
    """The health endpoints, which say the same and differ in what they call healthy."""

    async def live(request: Request) -> Response:
        """``GET /health/live``: 503 when only a restart can help."""
        now = readiness(registry)
        return json_response(now, 503 if now.status == "failed" else 200)

    async def ready(request: Request) -> Response:
        """``GET /health/ready``: whether requests to every model are served now."""
        now = readiness(registry)
        return json_response(now, 200 if now.status == "ready" else 503)

    return [Route("/health/live", live, methods=["GET"]), Route("/health/ready", ready, methods=["GET"])]


def readiness(registry: Registry) -> Readiness:
    """The models now."""
    models = [_of(served) for served in registry]
    return Readiness(min((model.status for model in models), key=_WORST_FIRST.index), models)


def _of(served: Served[Any]) -> ModelReadiness:
    model = served.thread.model
    engine = model.engine if isinstance(model, Model) else None
    return ModelReadiness(
        name=served.name,
        status=served.thread.state,
        device=None if model is None else model.device,
        sequences=served.thread.open,
        kv_pages=0 if engine is None else engine.page_count,
        kv_pages_free=0 if engine is None else engine.free_pages,
    )
