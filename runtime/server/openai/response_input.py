"""What a response's request says, as a conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from aicc.runtime.server.conversation import Conversation, Fields
from aicc.runtime.server.errors import decode_error
from aicc.runtime.server.openai.chat_input import ROLES, arguments_of, chosen, text_of
from aicc.runtime.server.openai.chat_schema import JsonObjectFormat
from aicc.runtime.server.openai.response_schema import (
    InputCall,
    InputItem,
    InputMessage,
    ResponseFunctionChoice,
    ResponseRequest,
    ResponseSchemaFormat,
)
from aicc.runtime.tools.formats import Function

_FIELDS = Fields("input", "text.format.schema", "tools[{}].parameters")


def conversation_of(asked: ResponseRequest) -> Conversation:
    """The conversation a request asks to go on with.

    Raises:
        ApiError: Fields do not fit together, or an item of the input is none.
    """
    functions = [Function(t.name, t.description, t.parameters, bool(t.strict)) for t in asked.tools or []]
    choice = asked.tool_choice
    named = choice.name if isinstance(choice, ResponseFunctionChoice) else None
    mode = choice if not isinstance(choice, ResponseFunctionChoice) else None
    return Conversation(
        _messages(asked),
        _FIELDS,
        **chosen(functions, mode, named, asked.parallel_tool_calls, "tool_choice.name"),
        schema=_schema_of(asked),
    )


def _messages(asked: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions is not None:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for i, given in enumerate(asked.input):
        item = _item(given, f"input[{i}]")
        if isinstance(item, InputMessage):
            messages.append({"role": ROLES.get(item.role, item.role), "content": text_of(item.content)})
        elif isinstance(item, InputCall):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            arguments = arguments_of(item.arguments, f"input[{i}].arguments")
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "name": item.name, "arguments": arguments})
        else:
            messages.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
    return messages


def _item(given: dict[str, Any], where: str) -> InputItem:
    """An item, which is a message if it does not say what it is."""
    try:
        item: InputItem = msgspec.convert({"type": "message", **given}, InputItem)
    except msgspec.ValidationError as error:
        raise decode_error(error, where) from None
    return item


def _schema_of(asked: ResponseRequest) -> dict[str, Any] | None:
    form = asked.text.format if asked.text is not None else None
    if isinstance(form, ResponseSchemaFormat):
        return form.schema
    return {"type": "object"} if isinstance(form, JsonObjectFormat) else None
