"""The messages of ``/v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aicc.runtime.server.fields import MAX_INPUTS, TokenId, Unimplemented

Text = Annotated[str, Meta(min_length=1)]


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Body of ``POST /v1/embeddings``."""

    model: Annotated[str, Meta(description="The name `/v1/models` lists.")]
    input: Annotated[
        Text | Annotated[list[Text | TokenId | list[TokenId]], Meta(min_length=1, max_length=MAX_INPUTS)],
        Meta(description=f"A string, a list of token ids, or a list of up to {MAX_INPUTS} of either."),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`float` when left out; `base64` is of little-endian float32."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for the caller's own records; changes nothing.")] = None
    dimensions: Unimplemented = None


class Embedding(msgspec.Struct, frozen=True):
    """One text's vector."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts, special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """Answer of ``POST /v1/embeddings``."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
