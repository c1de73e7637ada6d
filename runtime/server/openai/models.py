"""``/v1/models``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.bodies import json_response
from aicc.runtime.server.openai.schema import ModelCard, ModelList
from aicc.runtime.server.registry import Registry, Served


def routes(registry: Registry) -> list[Route]:
    """What is served."""

    async def list_models(request: Request) -> Response:
        """``GET /v1/models``."""
        return json_response(ModelList([_card(served) for served in registry]))

    async def show_model(request: Request) -> Response:
        """``GET /v1/models/{id}``."""
        return json_response(_card(registry.find(request.path_params["name"])))

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", show_model, methods=["GET"]),
    ]


def _card(served: Served[Any]) -> ModelCard:
    return ModelCard(served.name, served.created)
