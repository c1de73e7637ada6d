"""``/v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.server.bodies import BodyReader, json_response
from aicc.runtime.server.embedding import embed
from aicc.runtime.server.openai.embedding_schema import (
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
)
from aicc.runtime.server.openai.schema import one_or_many
from aicc.runtime.server.registry import Registry


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Vectors of texts, by an encoder."""
    decoder = msgspec.json.Decoder(EmbeddingRequest)

    async def embeddings(request: Request) -> Response:
        """``POST /v1/embeddings``."""
        asked = await bodies.message(request, decoder)
        encoder = registry.tensors(asked.model)
        inputs: Sequence[str | list[int]] = one_or_many(asked.input, "input")
        done = await embed(request, encoder, inputs, "input")
        encode = _base64 if asked.encoding_format == "base64" else _floats
        data = [Embedding(i, encode(vector)) for i, vector in enumerate(done.vectors)]
        return json_response(EmbeddingList(data, encoder.name, EmbeddingUsage(done.tokens, done.tokens)))

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


def _floats(vector: NDArray[np.float32]) -> list[float]:
    values: list[float] = vector.tolist()
    return values


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
