"""``/api/embed``."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.bodies import BodyReader, json_response
from aicc.runtime.server.embedding import embed
from aicc.runtime.server.ollama.schema import EmbedAnswer, EmbedRequest
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Registry


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Vectors of texts, by an encoder."""
    decoder = msgspec.json.Decoder(EmbedRequest)

    async def embeddings(request: Request) -> Response:
        """``POST /api/embed``."""
        asked = await bodies.message(request, decoder)
        encoder = registry.tensors(asked.model)
        done = await embed(request, encoder, [asked.input] if isinstance(asked.input, str) else asked.input, "input")
        took = round((time.monotonic() - record_of(request.scope).started) * 1e9)
        return json_response(EmbedAnswer(encoder.name, [v.tolist() for v in done.vectors], took, 0, done.tokens))

    return [Route("/api/embed", embeddings, methods=["POST"])]
