"""The messages of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.fields import MAX_TOOLS, FunctionName, Schema, TokenCount, Unimplemented
from aicc.runtime.server.openai.schema import SamplingRequest, Usage

MAX_TOP_LOGPROBS = 20

FinishReason = Literal["stop", "length", "tool_calls"]


class CacheControl(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A wish to keep the prompt up to here, as clients of other APIs send it."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A piece of a message. Every prompt is kept while there is room, whether or not a part asks for it."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


Content: TypeAlias = str | Annotated[list[TextPart], Meta(min_length=1)]


class SystemMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="role", tag="system"):
    """What the model is to be."""

    content: Content
    name: str | None = None


class DeveloperMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="role", tag="developer"):
    """The API's newer name of a system message."""

    content: Content
    name: str | None = None


class UserMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="role", tag="user"):
    """A turn of the user."""

    content: Content
    name: str | None = None


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A function and its arguments, JSON in a string."""

    name: FunctionName
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A call of a function."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="role", tag="assistant"):
    """A turn of the model. The null fields are those the official client sends back with an answer."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: Unimplemented = None
    annotations: Unimplemented = None
    audio: Unimplemented = None
    function_call: Unimplemented = None


class ToolMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="role", tag="tool"):
    """What a function that was called returned."""

    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Something the model may use; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionChoiceName(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which function."""

    name: FunctionName


class FunctionChoice(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The one function that has to be called."""

    type: Literal["function"]
    function: FunctionChoiceName


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A schema and what it is called."""

    name: FunctionName
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    json_schema: JsonSchema


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[
        list[ChatMessage],
        Meta(
            min_length=1,
            description="Roles system, developer (as system), user, assistant, tool; text or text parts, whose "
            "`cache_control` changes nothing: prompts are kept anyway.",
        ),
    ]
    max_completion_tokens: Annotated[TokenCount | None, Meta(description="The newer name of `max_tokens`.")] = None
    logprobs: Annotated[
        bool | None, Meta(description="Return the log-probability of each token, before penalties and temperature.")
    ] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        Meta(description="Return this many likeliest tokens at each position too; needs `logprobs`."),
    ] = None
    response_format: Annotated[
        ResponseFormat | None, Meta(description="`text`, `json_object` or `json_schema`; the latter two are enforced.")
    ] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description=f"Functions the model may call, up to {MAX_TOOLS}."),
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | FunctionChoice | None,
        Meta(description="`none`, `auto`, `required` or one function; the latter two are enforced."),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="Whether an answer may hold several calls; true when left out.")
    ] = None
    audio: Unimplemented = None
    function_call: Unimplemented = None
    functions: Unimplemented = None
    metadata: Unimplemented = None
    modalities: Unimplemented = None
    moderation: Unimplemented = None
    prediction: Unimplemented = None
    prompt_cache_key: Unimplemented = None
    prompt_cache_options: Unimplemented = None
    prompt_cache_retention: Unimplemented = None
    reasoning_effort: Unimplemented = None
    safety_identifier: Unimplemented = None
    service_tier: Unimplemented = None
    store: Unimplemented = None
    verbosity: Unimplemented = None
    web_search_options: Unimplemented = None


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


class AnswerMessage(msgspec.Struct, frozen=True):
    """The model's turn."""

    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET
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


class DeltaFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event adds to a function's call."""

    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event adds to a call: the first of a call has its id and name, the others more of its arguments."""

    index: int
    function: DeltaFunction
    id: str | None = None
    type: Literal["function"] | None = None


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a streamed event adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


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
