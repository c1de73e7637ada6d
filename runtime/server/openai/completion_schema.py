"""The messages of ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.fields import TokenId, Unimplemented
from aicc.runtime.server.openai.schema import SamplingRequest, Usage
from aicc.runtime.server.sequence_group import FinishReason

MAX_PROMPTS = 64
MAX_LOGPROBS = 5


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[
        str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)],
        Meta(description=f"A string, a list of token ids, or a list of up to {MAX_PROMPTS} of either."),
    ]
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="Return the log-probability of each token, and of this many likeliest."),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None,
        Meta(description="Most tokens to generate, for each choice; 16 when left out, 0 only with `echo`."),
    ] = None
    echo: Annotated[
        bool | None, Meta(description="Begin each choice with its prompt, and `logprobs` with the prompt's.")
    ] = None
    best_of: Unimplemented = None
    suffix: Unimplemented = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists over the tokens; ``text_offset`` is where each begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice; while streaming, the next piece of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct, frozen=True):
    """A completion, or one event of a streamed one."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
