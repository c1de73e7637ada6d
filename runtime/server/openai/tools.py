"""What a chat asks of its answer's form: calls of functions, JSON, a schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from aicc.runtime.constraint import Constraint
from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.server.errors import ApiError, from_foreseen, invalid
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
from aicc.runtime.tools.formats import MOST_CALLS, Function, ToolFormat
from aicc.runtime.tools.grammar import calls_grammar, optional_calls_grammar

_ROLES = {"developer": "system"}  # the API's newer name


def functions_of(asked: ChatRequest) -> list[Function]:
    """The functions on offer; none where the model may not call any.

    Raises:
        ApiError: The choice of functions does not fit those there are.
    """
    functions = [
        Function(f.name, f.description, f.parameters, bool(f.strict)) for f in (t.function for t in asked.tools or [])
    ]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise invalid("'tools' has two functions of one name.", "tools")
    choice = asked.tool_choice
    if not functions:
        if choice not in (None, "none"):
            raise invalid("'tool_choice' is only allowed with 'tools'.", "tool_choice")
        if asked.parallel_tool_calls is not None:
            raise invalid("'parallel_tool_calls' is only allowed with 'tools'.", "parallel_tool_calls")
    if isinstance(choice, FunctionChoice) and choice.function.name not in names:
        raise invalid(f"'tools' has no function '{choice.function.name}'.", "tool_choice.function.name")
    return [] if choice == "none" else functions


def messages_of(asked: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation as :func:`aicc.runtime.tools.formats.template_input` takes it.

    Raises:
        ApiError: An assistant said nothing, or called a function with what is no JSON object.
    """
    return [_message(message, f"messages[{i}]") for i, message in enumerate(asked)]


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    role = str(message.__struct_config__.tag)
    shown: dict[str, Any] = {"role": _ROLES.get(role, role), "content": text_of(message.content)}
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
                    "arguments": _arguments(call.function.arguments, f"{where}.tool_calls[{i}].function.arguments"),
                }
                for i, call in enumerate(message.tool_calls)
            ]
        elif message.content is None:
            param = f"{where}.content"
            raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return shown


def text_of(content: Content | None) -> str:
    """A content as one string."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _arguments(text: str, param: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"'{param}' must be a JSON object in a string.", param)
    return arguments


def constraint_of(
    asked: ChatRequest, model: Model, form: ToolFormat, functions: Sequence[Function], marker: int | None
) -> Callable[[], Constraint] | None:
    """Makes what an answer must follow, one for each choice; None if it may be anything.

    Args:
        asked: The request.
        model: Whose tokenizer the grammar is for.
        form: How the model writes calls.
        functions: Those on offer.
        marker: The token the form's marker is, if it is a special one.
    """
    most = 1 if asked.parallel_tool_calls is False or form.separator is None else MOST_CALLS
    if asked.tool_choice == "required":
        return lambda: _tool_constraint(model, functions, calls_grammar(form, functions, most, marker))
    if isinstance(asked.tool_choice, FunctionChoice):
        named = asked.tool_choice.function.name
        chosen = [function for function in functions if function.name == named]
        return lambda: _tool_constraint(model, functions, calls_grammar(form, chosen, 1, marker))
    schema = _schema_of(asked)
    if functions and (schema is not None or most == 1 or any(function.strict for function in functions)):
        grammar = optional_calls_grammar(form, functions, most, marker, schema)
        return lambda: _tool_constraint(model, functions, grammar)
    if schema is None:
        return None
    param = "response_format.json_schema.schema" if isinstance(asked.response_format, JsonSchemaFormat) else None
    return lambda: json_constraint(model, schema, param)


def json_constraint(model: Model, schema: dict[str, Any], param: str | None) -> Constraint:
    """What JSON by a schema must follow.

    Raises:
        ApiError: The schema has something that cannot be enforced; the field is ``param``.
    """
    try:
        return model.constraint("json_schema", schema)
    except AiccError as error:
        raise from_foreseen(error, param) from error


def _schema_of(asked: ChatRequest) -> dict[str, Any] | None:
    if isinstance(asked.response_format, JsonSchemaFormat):
        return asked.response_format.json_schema.schema
    return {"type": "object"} if isinstance(asked.response_format, JsonObjectFormat) else None


def _tool_constraint(model: Model, functions: Sequence[Function], grammar: str) -> Constraint:
    try:
        return model.constraint("lark", grammar)
    except AiccError as error:
        raise _at_fault(model, functions, error) from error


def _at_fault(model: Model, functions: Sequence[Function], error: AiccError) -> ApiError:
    """The refusal of a grammar, told of the function whose schema cannot be enforced."""
    for i, function in enumerate(functions):
        try:
            json_constraint(model, function.schema, f"tools[{i}].function.parameters")
        except ApiError as refused:
            return refused
    return from_foreseen(error, "tools")
