"""The messages of ``/v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.fields import MAX_TOOLS, FunctionName, Schema, TokenCount, Unimplemented
from aicc.runtime.server.openai.chat_schema import JsonObjectFormat, JsonSchema, TextFormat

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseTool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A function the model may call."""

    type: Literal["function"]
    name: FunctionName
    parameters: Schema | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFunctionChoice(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The one function that has to be called."""

    type: Literal["function"]
    name: FunctionName


class ResponseSchemaFormat(JsonSchema, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""


AnswerFormat: TypeAlias = TextFormat | JsonObjectFormat | ResponseSchemaFormat


class TextOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the answer's text is."""

    format: AnswerFormat | None = None
    verbosity: Unimplemented = None


class InputText(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A piece of a message; the lists are those of an answer that is sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Meta(max_length=0)] | None = None


InputContent: TypeAlias = str | Annotated[list[InputText], Meta(min_length=1)]


class InputMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="message"):
    """A turn; ``id`` and ``status`` are those of an answer that is sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent
    id: str | None = None
    status: Status | None = None
    phase: Unimplemented = None


class InputCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="function_call"):
    """A function the model called."""

    call_id: str
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Status | None = None


class InputResult(
    msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="function_call_output"
):
    """What it returned."""

    call_id: str
    output: InputContent
    id: str | None = None
    status: Status | None = None


InputItem: TypeAlias = InputMessage | InputCall | InputResult


class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Body of ``POST /v1/responses``."""

    model: Annotated[str, Meta(description="The name `/v1/models` lists.")]
    input: Annotated[
        str | Annotated[list[dict[str, Any]], Meta(min_length=1)],
        Meta(description="A text, or items: messages, calls of functions, what these returned."),
    ]
    instructions: Annotated[str | None, Meta(description="A system message in front of the input.")] = None
    max_output_tokens: Annotated[TokenCount | None, Meta(description="Most tokens to generate.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0 is greedy; 1 when left out.")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Sample among the likeliest tokens holding this much probability."),
    ] = None
    text: Annotated[
        TextOptions | None,
        Meta(description="`format`: `text`, `json_object` or `json_schema`; the latter two are enforced."),
    ] = None
    tools: Annotated[
        Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description=f"Functions the model may call, up to {MAX_TOOLS}."),
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | ResponseFunctionChoice | None,
        Meta(description="`none`, `auto`, `required` or one function; the latter two are enforced."),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="Whether an answer may hold several calls; true when left out.")
    ] = None
    stream: Annotated[bool | None, Meta(description="Send server-sent events while generating.")] = None
    store: Annotated[bool | None, Meta(description="`false` only, and so it is when left out: nothing is kept.")] = None
    truncation: Annotated[
        Literal["disabled"] | None, Meta(description="`disabled` only: an input that does not fit is refused.")
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for the caller's own records; changes nothing.")] = None
    access_programs: Unimplemented = None
    background: Unimplemented = None
    background_options: Unimplemented = None
    context_management: Unimplemented = None
    conversation: Unimplemented = None
    image: Unimplemented = None
    include: Unimplemented = None
    max_tool_calls: Unimplemented = None
    metadata: Unimplemented = None
    moderation: Unimplemented = None
    previous_response_id: Unimplemented = None
    prompt: Unimplemented = None
    prompt_cache_key: Unimplemented = None
    prompt_cache_options: Unimplemented = None
    prompt_cache_retention: Unimplemented = None
    reasoning: Unimplemented = None
    safety_identifier: Unimplemented = None
    service_tier: Unimplemented = None
    stream_options: Unimplemented = None
    top_logprobs: Unimplemented = None


class OutputText(msgspec.Struct):
    """The text of a message."""

    text: str = ""
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()
    type: Literal["output_text"] = "output_text"


class OutputMessage(msgspec.Struct):
    """What the model says."""

    id: str
    content: list[OutputText]
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class OutputCall(msgspec.Struct):
    """A function the model calls."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"
    type: Literal["function_call"] = "function_call"


OutputItem: TypeAlias = OutputMessage | OutputCall


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of the input that were in memory already; none is written where a caller would have to ask for it."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """What the generated tokens are; none is of a kind the text does not show."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class ResponseTextOptions(msgspec.Struct, frozen=True):
    """The form the answer has."""

    format: AnswerFormat


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``POST /v1/responses``."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[OutputItem]
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: ResponseTextOptions
    tools: list[ResponseTool]
    tool_choice: Literal["none", "auto", "required"] | ResponseFunctionChoice
    parallel_tool_calls: bool
    user: str | UnsetType = UNSET
    incomplete_details: IncompleteDetails | None = None
    error: None = None
    metadata: dict[str, str] = {}
    previous_response_id: None = None
    background: bool = False
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"
