"""What the messages of OpenAI's endpoints have in common."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aicc.runtime.server.errors import invalid
from aicc.runtime.server.fields import Penalty, StopString, TokenCount, TokenId, Unimplemented

MAX_CHOICES = 8
MAX_STOPS = 4

Bias = Annotated[float, Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream carries besides its text."""

    include_usage: bool | None = None
    include_obfuscation: Unimplemented = None


class SamplingRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a chat and a completion may both ask."""

    model: Annotated[str, Meta(description="The name `/v1/models` lists.")]
    max_tokens: Annotated[TokenCount | None, Meta(description="Most tokens to generate, for each choice.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0 is greedy; 1 when left out.")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Sample among the likeliest tokens holding this much probability."),
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None,
        Meta(description="Extension: sample among this many likeliest tokens; 0 is all."),
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Extension: leave out tokens less likely than this share of the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(ge=0.01, le=100)] | None,
        Meta(description="Extension: logits of tokens of prompt and text are divided by this, if positive."),
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from the logit of every token generated so far.")
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from a token's logit once for each time it was generated.")
    ] = None
    logit_bias: Annotated[
        Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None,
        Meta(description="Added to logits, by token id as a string."),
    ] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None,
        Meta(description=f"A string, or up to {MAX_STOPS}, that end the text and are not part of it."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        Meta(description="Makes sampling repeatable; choice i uses seed + i."),
    ] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="Extension: go on after the model's own end, up to `max_tokens`.")
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        Meta(description=f"Choices for each prompt, at most {MAX_CHOICES}."),
    ] = None
    stream: Annotated[bool | None, Meta(description="Send server-sent events while generating.")] = None
    stream_options: Annotated[
        StreamOptions | None, Meta(description="`include_usage`: one last event with the token counts.")
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for the caller's own records; changes nothing.")] = None


def one_or_many(value: str | list[str | int | list[int]], field: str) -> list[str | list[int]]:
    """A field that holds one text or several, as text or as token ids, as a list of texts.

    Raises:
        ApiError: It mixes them.
    """
    if isinstance(value, str):
        return [value]
    kinds = {type(item) for item in value}
    if len(kinds) != 1:
        raise invalid(f"'{field}' mixes texts, token ids and lists of token ids. Use one kind.", field)
    return [value] if kinds == {int} else value  # type: ignore[list-item, return-value]


class ModelCard(msgspec.Struct, frozen=True):
    """A model that is served."""

    id: str
    created: int  # seconds since the epoch
    object: Literal["model"] = "model"
    owned_by: str = "aicc"


class ModelList(msgspec.Struct, frozen=True):
    """Answer of ``GET /v1/models``."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of the prompts that were in memory already, and were not computed again."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """What the generated tokens are; none is of a kind the text does not show."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts; a prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()
