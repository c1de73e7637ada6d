"""From texts in a request to vectors; no API is known here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from aicc.runtime.embedding import Embedder
from aicc.runtime.errors import AiccError
from aicc.runtime.server.answering import in_time
from aicc.runtime.server.errors import ApiError, from_foreseen
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Tensors
from aicc.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some texts.

    Attributes:
        vectors: float32 ``[width]`` for each text.
        tokens: Tokens read, special ones included.
    """

    vectors: list[NDArray[np.float32]]
    tokens: int


async def embed(request: Request, encoder: Tensors, inputs: Sequence[str | list[int]], param: str) -> Embedded:
    """Vectors of texts, for a request whose record learns of them.

    Args:
        request: Its body was read already.
        encoder: What makes them.
        inputs: Texts, or token ids as they are.
        param: The request's field they came from, for errors.

    Raises:
        ApiError: The model is no text encoder, is not there or has too much to do; a text is too long, or all take
            too long.
    """
    record = record_of(request.scope)
    record.model = encoder.name
    done = await in_time(request, _embed(encoder, inputs, param))
    record.prompt_tokens = done.tokens
    return done


async def _embed(encoder: Tensors, inputs: Sequence[str | list[int]], param: str) -> Embedded:
    """Batch by batch, so that others have their turn between two; cancelling ends it."""
    session = encoder.thread.check()
    try:
        embedder = session.embedder
    except AiccError as error:
        raise ApiError(400, str(error), "model_not_supported", "model") from error
    loop = asyncio.get_running_loop()
    ids = await loop.run_in_executor(encoder.text, _tokenize, embedder, inputs, param)
    vectors: dict[int, NDArray[np.float32]] = {}
    for batch in embedder.batches(ids):
        texts = [ids[i] for i in batch]
        rows = await asyncio.wrap_future(encoder.thread.submit(partial(_run, texts, param)))
        vectors.update(zip(batch, rows, strict=True))
    return Embedded([vectors[i] for i in range(len(ids))], sum(map(len, ids)))


def _run(texts: list[list[int]], param: str, session: Session) -> NDArray[np.float32]:
    try:
        return session.embedder.run(texts)
    except AiccError as error:
        raise from_foreseen(error, param) from error


def _tokenize(embedder: Embedder, inputs: Sequence[str | list[int]], param: str) -> list[list[int]]:
    ids = []
    for i, text in enumerate(inputs):
        try:
            if isinstance(text, str):
                text = embedder.tokenize(text)
            else:
                embedder.check(text)
        except AiccError as error:
            raise from_foreseen(error, param if len(inputs) == 1 else f"{param}[{i}]") from error
        ids.append(text)
    return ids
