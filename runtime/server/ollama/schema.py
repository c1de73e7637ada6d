"""The messages of Ollama's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.fields import MAX_INPUTS, MAX_TOOLS, FunctionName, Penalty, Schema, StopString, Unimplemented

MAX_STOPS = 16

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Format: TypeAlias = Literal["", "json"] | Schema
KeepAlive: TypeAlias = Annotated[float, Meta(lt=0)] | Annotated[str, Meta(pattern=r"^-[0-9a-z.]{1,30}\Z")]


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How to sample and when to stop."""

    num_predict: Annotated[
        Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None,
        Meta(description="Most tokens to generate; -1, -2 and left out are as many as the context holds."),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="0 is greedy; 0.8 when left out.")
    ] = None
    top_k: Annotated[
        Count | None, Meta(description="Sample among this many likeliest tokens; 40 when left out, 0 is all.")
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Sample among the likeliest tokens holding this much probability; 0.9 when left out."),
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Leave out tokens less likely than this share of the likeliest."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        Meta(description="Makes sampling repeatable; a negative one is as good as none."),
    ] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None,
        Meta(description=f"A string, or up to {MAX_STOPS}, that end the text and are not part of it."),
    ] = None
    repeat_penalty: Annotated[
        Annotated[float, Meta(ge=0.01, le=100)] | None,
        Meta(description="Logits of tokens of prompt and text are divided by this, if positive; 1 when left out."),
    ] = None
    repeat_last_n: Annotated[
        Literal[-1] | None, Meta(description="-1 only: `repeat_penalty` looks at the whole prompt and text.")
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from the logit of every token generated so far.")
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from a token's logit once for each time it was generated.")
    ] = None
    num_ctx: Annotated[
        Count | None, Meta(description="Tokens of context that are needed; refused where the model's holds fewer.")
    ] = None
    embedding_only: Unimplemented = None
    f16_kv: Unimplemented = None
    logits_all: Unimplemented = None
    low_vram: Unimplemented = None
    main_gpu: Unimplemented = None
    mirostat: Unimplemented = None
    mirostat_eta: Unimplemented = None
    mirostat_tau: Unimplemented = None
    num_batch: Unimplemented = None
    num_gpu: Unimplemented = None
    num_keep: Unimplemented = None
    num_thread: Unimplemented = None
    numa: Unimplemented = None
    penalize_newline: Unimplemented = None
    tfs_z: Unimplemented = None
    typical_p: Unimplemented = None
    use_mlock: Unimplemented = None
    use_mmap: Unimplemented = None
    vocab_only: Unimplemented = None


class AskedRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What every request to a model may say."""

    model: Annotated[str, Meta(description="The name `/api/tags` lists.")]
    keep_alive: Annotated[
        KeepAlive | None, Meta(description="Negative only: models stay loaded as long as the server runs.")
    ] = None


class GeneratingRequest(AskedRequest, frozen=True, kw_only=True):
    """What a chat and a generation may both ask."""

    stream: Annotated[bool | None, Meta(description="Send an object a line while generating; true when left out.")] = (
        None
    )
    format: Annotated[Format | None, Meta(description="`json` or a JSON schema; both are enforced.")] = None
    options: Annotated[
        Options | None, Meta(description="How to sample and when to stop: the rows that are of `options`.")
    ] = None
    logprobs: Unimplemented = None
    think: Unimplemented = None
    top_logprobs: Unimplemented = None


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A function and its arguments."""

    name: FunctionName
    arguments: dict[str, Any]
    index: int | None = None  # among the calls of its message


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A call of a function."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Unimplemented = None
    thinking: Unimplemented = None


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Something the model may use; functions are the only kind."""

    function: FunctionDefinition
    type: Literal["function"] = "function"


class ChatRequest(GeneratingRequest, frozen=True, kw_only=True):
    """Body of ``POST /api/chat``."""

    messages: Annotated[list[Message], Meta(min_length=1, description="Roles system, user, assistant, tool; text.")]
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description=f"Functions the model may call, up to {MAX_TOOLS}."),
    ] = None


class GenerateRequest(GeneratingRequest, frozen=True, kw_only=True):
    """Body of ``POST /api/generate``. The official client sends empty texts for what it leaves out."""

    prompt: Annotated[str, Meta(min_length=1, description="What the user says, or with `raw` a text as it is.")]
    system: Annotated[str | None, Meta(description="A system message in front of the prompt.")] = None
    raw: Annotated[bool | None, Meta(description="Take the prompt as it is, without the chat template.")] = None
    suffix: str | None = None  # empty only
    template: str | None = None  # empty only
    context: Unimplemented = None
    height: Unimplemented = None
    images: Unimplemented = None
    steps: Unimplemented = None
    width: Unimplemented = None


class NoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The options of what does not sample."""


class EmbedRequest(AskedRequest, frozen=True, kw_only=True):
    """Body of ``POST /api/embed``."""

    input: Annotated[
        str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)],
        Meta(description=f"A string, or a list of up to {MAX_INPUTS}."),
    ]
    truncate: Annotated[
        Literal[False] | None, Meta(description="`false` only, and so it is when left out: nothing is cut.")
    ] = None
    options: NoOptions | None = None
    dimensions: Unimplemented = None


class ShowRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Body of ``POST /api/show``."""

    model: str
    verbose: bool | None = None  # nothing is told that is not always told


class AnswerMessage(msgspec.Struct, frozen=True):
    """The model's turn, or the next piece of it."""

    content: str
    tool_calls: list[ToolCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``/api/chat`` (``message``) and ``/api/generate`` (``response``), or a line of it.

    What follows ``done_reason`` is in whole answers and last lines. Durations are in nanoseconds.
    """

    model: str
    created_at: str
    message: AnswerMessage | UnsetType = UNSET
    response: str | UnsetType = UNSET
    done: bool
    done_reason: Literal["stop", "length"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class EmbedAnswer(msgspec.Struct, frozen=True):
    """Answer of ``POST /api/embed``."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Details(msgspec.Struct, frozen=True):
    """What a model is. What an artifact does not know is not told."""

    parent_model: str
    quantization_level: str
    format: Literal["aicc"] = "aicc"


class ModelCard(msgspec.Struct, frozen=True):
    """A model that is served."""

    name: str
    model: str
    modified_at: str
    size: int  # bytes of the artifact's files
    digest: str
    details: Details


class RunningModel(msgspec.Struct, frozen=True):
    """A model that is loaded; it stays so."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    context_length: int | UnsetType


class Tags(msgspec.Struct, frozen=True):
    """Answer of ``GET /api/tags``."""

    models: list[ModelCard]


class Running(msgspec.Struct, frozen=True):
    """Answer of ``GET /api/ps``."""

    models: list[RunningModel]


class Shown(msgspec.Struct, frozen=True):
    """Answer of ``POST /api/show``. ``template`` is the chat template in Jinja; empty if there is none."""

    modified_at: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    license: str


class Version(msgspec.Struct, frozen=True):
    """Answer of ``GET /api/version``."""

    version: str
