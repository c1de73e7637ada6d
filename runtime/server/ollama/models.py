"""``/api/tags``, ``/api/ps``, ``/api/show`` and ``/api/version``."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.generator import Model
from aicc.runtime.server.bodies import BodyReader, json_response
from aicc.runtime.server.ollama.schema import (
    Details,
    ModelCard,
    Running,
    RunningModel,
    Shown,
    ShowRequest,
    Tags,
    Version,
)
from aicc.runtime.server.registry import Registry, Served


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """What is served."""
    decoder = msgspec.json.Decoder(ShowRequest)

    async def tags(request: Request) -> Response:
        """``GET /api/tags``."""
        return json_response(Tags([_card(served) for served in registry]))

    async def running(request: Request) -> Response:
        """``GET /api/ps``."""
        return json_response(Running([_running(served) for served in registry if served.thread.state == "ready"]))

    async def show(request: Request) -> Response:
        """``POST /api/show``."""
        asked = await bodies.message(request, decoder)
        return json_response(_shown(registry.find(asked.model)))

    async def version(request: Request) -> Response:
        """``GET /api/version``."""
        return json_response(Version(metadata.version("aicc")))

    return [
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/version", version, methods=["GET"]),
    ]


def _card(served: Served[Any]) -> ModelCard:
    return ModelCard(served.name, served.name, _put_up(served), _size(served), served.digest, _details(served))


def _running(served: Served[Any]) -> RunningModel:
    model = served.thread.model
    context = model.context_length if isinstance(model, Model) else UNSET
    return RunningModel(served.name, served.name, _size(served), served.digest, _details(served), context)


def _shown(served: Served[Any]) -> Shown:
    model, manifest = served.thread.model, served.manifest
    template = model.chat_template.source if isinstance(model, Model) and model.has_chat_template else ""
    # Callers look for a context length behind the name of the architecture, whatever that is.
    info: dict[str, Any] = {"general.architecture": "aicc", "general.basename": manifest.name}
    capabilities = []
    if manifest.llm is not None:
        info["aicc.context_length"] = model.context_length if isinstance(model, Model) else manifest.llm.context_length
        info["aicc.vocab_size"] = manifest.llm.vocab_size
        capabilities = ["completion", "tools"] if template else ["completion"]
    elif manifest.embedding is not None:
        info["aicc.context_length"] = manifest.embedding.max_tokens
        capabilities = ["embedding"]
    return Shown(_put_up(served), template, _details(served), info, capabilities, manifest.source.licence)


def _details(served: Served[Any]) -> Details:
    return Details(served.manifest.source.name, served.manifest.quantization)


def _size(served: Served[Any]) -> int:
    return sum(file.bytes for file in served.manifest.files)


def _put_up(served: Served[Any]) -> str:
    return datetime.fromtimestamp(served.created, UTC).isoformat()
