"""What a chat's request says, as a conversation."""

from __future__ import annotations

import json
from typing import Any, Literal

from aicc.runtime.server.conversation import Conversation, Fields
from aicc.runtime.server.errors import invalid
from aicc.runtime.server.openai.chat_schema import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    Content,
    FunctionChoice,
    JsonObjectFormat,
    JsonSchemaFormat,
    ToolMessage,
)
from aicc.runtime.server.openai.response_schema import InputContent
from aicc.runtime.tools.formats import Function

_FIELDS = Fields("messages", "response_format.json_schema.schema", "tools[{}].function.parameters")
ROLES = {"developer": "system"}  # the API's newer name


def conversation_of(asked: ChatRequest) -> Conversation:
    """The conversation a request asks to go on with.

    Raises:
        ApiError: Fields do not fit together, or a message is none.
    """
    functions = [
        Function(f.name, f.description, f.parameters, bool(f.strict)) for f in (t.function for t in asked.tools or [])
    ]
    choice = asked.tool_choice
    named = choice.function.name if isinstance(choice, FunctionChoice) else None
    mode = choice if not isinstance(choice, FunctionChoice) else None
    return Conversation(
        [_message(message, f"messages[{i}]") for i, message in enumerate(asked.messages)],
        _FIELDS,
        **chosen(functions, mode, named, asked.parallel_tool_calls, "tool_choice.function.name"),
        schema=_schema_of(asked),
    )


def chosen(
    functions: list[Function],
    mode: Literal["none", "auto", "required"] | None,
    named: str | None,
    parallel: bool | None,
    name_param: str,
) -> dict[str, Any]:
    """The arguments of a :class:`Conversation` that say what may and what has to be called.

    Args:
        functions: On offer.
        mode: What ``tool_choice`` says; None if it says nothing or names a function.
        named: The function it names.
        parallel: What ``parallel_tool_calls`` says.
        name_param: The field that names the function.

    Raises:
        ApiError: They do not fit together.
    """
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise invalid("'tools' has two functions of one name.", "tools")
    if not functions:
        if named is not None or mode not in (None, "none"):
            raise invalid("'tool_choice' is only allowed with 'tools'.", "tool_choice")
        if parallel is not None:
            raise invalid("'parallel_tool_calls' is only allowed with 'tools'.", "parallel_tool_calls")
    if named is not None and named not in names:
        raise invalid(f"'tools' has no function '{named}'.", name_param)
    if mode == "none" or not functions:
        return {}
    to_call = [f for f in functions if f.name == named] if named is not None else functions
    enforced = named is not None or mode == "required"
    return {
        "functions": functions,
        "to_call": to_call if enforced else None,
        "parallel": named is None and parallel is not False,
    }


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    role = str(message.__struct_config__.tag)
    shown: dict[str, Any] = {"role": ROLES.get(role, role), "content": text_of(message.content)}
    if message.name is not None:
        shown["name"] = message.name
    if isinstance(message, ToolMessage):
        shown["tool_call_id"] = message.tool_call_id
    elif isinstance(message, AssistantMessage):
        if message.tool_calls:
            shown["tool_calls"] = [
                {
                    "id": call.id,
                    "name": call.function.name,
                    "arguments": arguments_of(call.function.arguments, f"{where}.tool_calls[{i}].function.arguments"),
                }
                for i, call in enumerate(message.tool_calls)
            ]
        elif message.content is None:
            param = f"{where}.content"
            raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return shown


def text_of(content: Content | InputContent | None) -> str:
    """What is said, in one piece."""
    return content if isinstance(content, str) else "".join(part.text for part in content or [])


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """The arguments of a call in the conversation, as an object.

    Raises:
        ApiError: They are none.
    """
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"'{param}' must be a JSON object in a string.", param)
    return arguments


def _schema_of(asked: ChatRequest) -> dict[str, Any] | None:
    if isinstance(asked.response_format, JsonSchemaFormat):
        return asked.response_format.json_schema.schema
    return {"type": "object"} if isinstance(asked.response_format, JsonObjectFormat) else None
