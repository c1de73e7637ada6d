"""Whether the server lives, whether it serves, and how busy it is."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.generator import Model
from aicc.runtime.server.bodies import json_response
from aicc.runtime.server.draining import Drain
from aicc.runtime.server.model_thread import PHASES, ModelThread, State
from aicc.runtime.server.registry import Registry, Served

LIVE, READY = "/health/live", "/health/ready"
_V2 = "/v2"  # the Open Inference Protocol has the same below its own root
PATHS = frozenset({LIVE, READY, _V2 + LIVE, _V2 + READY})
RPCS = frozenset({f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady")})  # over gRPC
_WORST_FIRST: tuple[State, ...] = ("failed", "stopped", "loading", "ready")


class Loading(msgspec.Struct, frozen=True):
    """How far loading a model is: in the phase of this number of so many, since so long."""

    phase: str
    number: int
    phases: int
    seconds: float


class ModelReadiness(msgspec.Struct, frozen=True):
    """One model. ``kv_pages`` are of a language model's memory, 0 for others."""

    name: str
    status: State
    loading: Loading | None
    device: str | None
    target: str | None
    sequences: int  # running, waiting or being prepared
    kv_pages: int
    kv_pages_free: int


class Readiness(msgspec.Struct, frozen=True):
    """Answer of the health endpoints; the status is the worst of the models', or that the server is ending."""

    status: State | Literal["draining"]
    models: list[ModelReadiness]


def routes(registry: Registry, drain: Drain) -> list[Route]:
    """The health endpoints, which say the same and differ in what they call healthy."""

    async def live(request: Request) -> Response:
        """``GET /health/live``: 503 when only a restart can help."""
        now = readiness(registry, drain)
        return json_response(now, 503 if now.status == "failed" else 200)

    async def ready(request: Request) -> Response:
        """``GET /health/ready``: whether requests to every model are served now."""
        now = readiness(registry, drain)
        return json_response(now, 200 if now.status == "ready" else 503)

    return [
        Route(root + path, endpoint, methods=["GET"])
        for root in ("", _V2)
        for path, endpoint in ((LIVE, live), (READY, ready))
    ]


def readiness(registry: Registry, drain: Drain) -> Readiness:
    """The models now."""
    models = [_of(served) for served in registry]
    worst = min((model.status for model in models), key=_WORST_FIRST.index)
    return Readiness("draining" if drain.draining and worst == "ready" else worst, models)


def _of(served: Served[Any]) -> ModelReadiness:
    model = served.thread.model
    engine = model.engine if isinstance(model, Model) else None
    return ModelReadiness(
        name=served.name,
        status=served.thread.state,
        loading=_loading(served.thread) if served.thread.state == "loading" else None,
        device=None if model is None else model.device,
        target=None if model is None else model.target,
        sequences=served.thread.open,
        kv_pages=0 if engine is None else engine.page_count,
        kv_pages_free=0 if engine is None else engine.free_pages,
    )


def _loading(thread: ModelThread[Any]) -> Loading:
    return Loading(PHASES[thread.phase], thread.phase + 1, len(PHASES), round(time.monotonic() - thread.started, 3))
