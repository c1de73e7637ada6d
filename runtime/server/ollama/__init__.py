"""Ollama's API, as far as it asks models and lists them; nothing here pulls, makes or removes any."""

from __future__ import annotations

from starlette.routing import Route

from aicc.runtime.server.bodies import BodyReader
from aicc.runtime.server.ollama import embed, generate, models
from aicc.runtime.server.registry import Registry


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Its endpoints over some models."""
    return [
        *models.routes(registry, bodies),
        *generate.routes(registry, bodies),
        *embed.routes(registry, bodies),
    ]
