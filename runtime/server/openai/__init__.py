"""OpenAI's API."""

from __future__ import annotations

from starlette.routing import Route

from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.openai import chat, completions, embeddings, models, responses
from aicc.runtime.server.registry import Registry


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Its endpoints over some models."""
    return [
        *models.routes(registry),
        *chat.routes(registry, bodies),
        *completions.routes(registry, bodies),
        *embeddings.routes(registry, bodies),
        *responses.routes(registry, bodies),
    ]
