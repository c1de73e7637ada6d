"""The messages of the HTTP API, as OpenAI defines them.

Requests are strict: a field that is not listed is refused, and a field the API defines but this
server does not implement is listed with the type :data:`Unimplemented`, which takes only null, so
that asking for it is refused by name. The tables in ``docs/server.md`` are these definitions.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.errors import invalid
from aicc.runtime.server.generation import FinishReason

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5

Unimplemented: TypeAlias = None
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream carries besides its text."""

    include_usage: bool | None = None
    include_obfuscation: Unimplemented = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The form of the answer; text is the only one."""

    type: Literal["text"]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One turn. The null fields are those the official client sends back with an answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(min_length=1)]
    name: Unimplemented = None
    refusal: Unimplemented = None
    annotations: Unimplemented = None
    audio: Unimplemented = None
    function_call: Unimplemented = None
    tool_calls: Unimplemented = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


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


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[
        list[ChatMessage],
        Meta(min_length=1, description="Roles system, developer (as system), user, assistant; strings or text parts."),
    ]
    max_completion_tokens: Annotated[TokenCount | None, Meta(description="The newer name of `max_tokens`.")] = None
    logprobs: Annotated[
        bool | None, Meta(description="Return the log-probability of each token, before penalties and temperature.")
    ] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        Meta(description="Return this many likeliest tokens at each position too; needs `logprobs`."),
    ] = None
    response_format: Annotated[ResponseFormat | None, Meta(description='`{"type": "text"}` only.')] = None
    audio: Unimplemented = None
    function_call: Unimplemented = None
    functions: Unimplemented = None
    metadata: Unimplemented = None
    modalities: Unimplemented = None
    moderation: Unimplemented = None
    parallel_tool_calls: Unimplemented = None
    prediction: Unimplemented = None
    prompt_cache_key: Unimplemented = None
    prompt_cache_options: Unimplemented = None
    prompt_cache_retention: Unimplemented = None
    reasoning_effort: Unimplemented = None
    safety_identifier: Unimplemented = None
    service_tier: Unimplemented = None
    store: Unimplemented = None
    tool_choice: Unimplemented = None
    tools: Unimplemented = None
    verbosity: Unimplemented = None
    web_search_options: Unimplemented = None


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[
        str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)],
        Meta(description=f"A string, a list of token ids, or a list of up to {MAX_PROMPTS} of either."),
    ]
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None,
        Meta(description="Return the log-probability of each token, and of this many likeliest."),
    ] = None
    echo: Annotated[bool | None, Meta(description="`false` only.")] = None
    best_of: Unimplemented = None
    suffix: Unimplemented = None


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


class Usage(msgspec.Struct, frozen=True):
    """Token counts; a prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a position. ``bytes`` is null inside a character."""

    token: str
    logprob: float  # nats
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A generated token, and the likeliest at its position."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a choice's tokens, in order."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists over the tokens; ``text_offset`` is where each begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(msgspec.Struct, frozen=True):
    """The model's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a streamed event adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """The next piece of one choice."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat. ``usage`` is null in all but the last, if it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


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
