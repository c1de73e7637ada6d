"""What a request says, as a conversation and how to sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aicc.runtime.sampling import SamplingParams
from aicc.runtime.server.conversation import Conversation, Fields
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.fields import UNBOUNDED
from aicc.runtime.server.ollama.schema import ChatRequest, Format, GenerateRequest, Message, Options
from aicc.runtime.tools.formats import Function

_CHAT = Fields("messages", "format", "tools[{}].function.parameters")
_GENERATE = Fields("prompt", "format", "")


def chat_of(asked: ChatRequest) -> Conversation:
    """The conversation a chat asks to go on with.

    Raises:
        ApiError: Two functions have one name, or a message is none.
    """
    functions = [Function(f.name, f.description, f.parameters) for f in (tool.function for tool in asked.tools or [])]
    if len({function.name for function in functions}) < len(functions):
        raise invalid("'tools' has two functions of one name.", "tools")
    return Conversation(_messages(asked.messages), _CHAT, functions, schema=schema_of(asked.format))


def prompt_of(asked: GenerateRequest) -> Conversation:
    """What the user said, as a conversation."""
    messages = [{"role": "user", "content": asked.prompt}]
    if asked.system:
        messages.insert(0, {"role": "system", "content": asked.system})
    return Conversation(messages, _GENERATE, schema=schema_of(asked.format))


def schema_of(format: Format | None) -> dict[str, Any] | None:
    """The schema an answer must follow; None is any text."""
    if format == "json":
        return {"type": "object"}
    return format if isinstance(format, dict) else None


def sampling_params(options: Options | None, context_length: int) -> SamplingParams:
    """How to sample; what is left out has the API's default, not the library's.

    Args:
        options: What the request says.
        context_length: What the model holds.

    Raises:
        ApiError: Naming the option that does not fit the model.
    """
    asked = options or Options()
    most = asked.num_predict or 0
    if asked.num_predict == 0:
        raise invalid("'options.num_predict' of 0 asks for nothing.", "options.num_predict")
    if (asked.num_ctx or 0) > context_length:
        message = f"'options.num_ctx' is {asked.num_ctx}, and the model's context holds {context_length} tokens."
        raise invalid(message, "options.num_ctx")
    return SamplingParams(
        max_tokens=most if most > 0 else UNBOUNDED,
        temperature=0.8 if asked.temperature is None else asked.temperature,
        top_k=40 if asked.top_k is None else asked.top_k,
        top_p=0.9 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repeat_penalty is None else asked.repeat_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=None if asked.seed is None or asked.seed < 0 else asked.seed,
        stop=asked.stop or (),
    )


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns; a result that does not say which call it is of is the next one's that waits for one."""
    shown = []
    waiting: list[dict[str, Any]] = []  # calls that have no result yet
    for i, message in enumerate(messages):
        turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.role == "tool":
            turn["tool_call_id"] = _answered(message, waiting, i)
        elif message.tool_name is not None or message.tool_call_id is not None:
            field = "tool_call_id" if message.tool_name is None else "tool_name"
            raise invalid(f"'messages[{i}].{field}' is only allowed with the role tool.", f"messages[{i}].{field}")
        if message.tool_calls:
            if message.role != "assistant":
                param = f"messages[{i}].tool_calls"
                raise invalid(f"'{param}' is only allowed with the role assistant.", param)
            turn["tool_calls"] = [
                {"id": call.id or f"call_{i}_{j}", "name": call.function.name, "arguments": call.function.arguments}
                for j, call in enumerate(message.tool_calls)
            ]
            waiting += turn["tool_calls"]
        shown.append(turn)
    return shown


def _answered(message: Message, waiting: list[dict[str, Any]], number: int) -> str:
    """The id of the call a result is of, which waits no more."""
    for i, call in enumerate(waiting):
        by_id = message.tool_call_id in (None, call["id"])
        if by_id and message.tool_name in (None, call["name"]):
            return str(waiting.pop(i)["id"])
    return message.tool_call_id or f"call_{number}"
