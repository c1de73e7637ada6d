"""The forms in which models write calls of functions.

A model writes calls as its chat template shows them, so the template tells the form. Where it shows
none that is known here, :data:`FALLBACK` explains one to the model in the system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

MOST_CALLS = 16  # in one answer that has to call
Messages = Sequence[Mapping[str, Any]]


class Function(msgspec.Struct, frozen=True):
    """A function on offer.

    Attributes:
        name: Letters, digits, ``_`` and ``-``.
        description: What it does.
        parameters: JSON schema of the object of its arguments.
        strict: Whether arguments must follow the schema even where calling is the model's choice.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The schema, of an object at least; no arguments if it names none."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}

    @property
    def definition(self) -> dict[str, Any]:
        """What chat templates are given."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.schema}}


class ToolFormat(msgspec.Struct, frozen=True):
    """How calls are written: ``start``, then ``opening {"name": …, arguments: …} closing`` for each, then ``end``.

    Attributes:
        name: What this description calls it.
        arguments: Key of the arguments.
        marker: Begins calls and appears in no other text; empty if they begin where the answer does.
        start: In front of all calls, after a marker that stands once.
        opening: In front of each call, after a marker that each call has.
        closing: After each call.
        separator: Between calls; None if an answer has one call only.
        end: After all calls.
        each: Whether each call has the marker.
        ids: Whether calls in a conversation need ids of nine letters and digits.
    """

    name: str
    arguments: Literal["arguments", "parameters"] = "arguments"
    marker: str = ""
    start: str = ""
    opening: str = ""
    closing: str = ""
    separator: str | None = None
    end: str = ""
    each: bool = False
    ids: bool = False


HERMES = ToolFormat("hermes", marker="<tool_call>", opening="\n", closing="\n</tool_call>", separator="\n", each=True)
LLAMA3 = ToolFormat("llama3", arguments="parameters")
MISTRAL = ToolFormat("mistral", marker="[TOOL_CALLS]", start="[", separator=", ", end="]", ids=True)
FALLBACK = msgspec.structs.replace(HERMES, name="fallback")

# Chosen on a small model that was never taught to call. It writes whatever the explanation shows, so that does not show
# how results look; and it calls where that helps, and nowhere else, only if it has seen itself do both.
_EXPLANATION = """You can call these functions, one JSON definition a line:
{functions}
If a function can give what the user asks for, answer with a call of it and nothing else:
{call}
If none can, answer in words."""
_GREETING = ("Hello", "Hello! How can I help you?")
_PLACEHOLDERS = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


def tool_format(template: str) -> ToolFormat:
    """The form a chat template shows; :data:`FALLBACK` if it offers no functions in a form known here."""
    if not re.search(r"\btools\b", template):
        return FALLBACK
    if "<tool_call>" in template and "arguments" in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        spaced = "[TOOL_CALLS] [" in template
        return msgspec.structs.replace(MISTRAL, start=" [") if spaced else MISTRAL
    if '"parameters": ' in template and "<|start_header_id|>" in template:
        return LLAMA3
    return FALLBACK


def template_input(
    form: ToolFormat, messages: Messages, functions: Sequence[Function]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """A conversation and the functions on offer, as a chat template of this form takes them.

    Args:
        form: The template's.
        messages: ``tool_calls`` of assistants have ``id``, ``name`` and ``arguments`` (a mapping); messages of
            functions have the role ``tool`` and a ``tool_call_id``.
        functions: Empty offers none.

    Returns:
        Messages, and definitions or None.
    """
    if form.name == FALLBACK.name:
        return _explained([_spelled_out(message) for message in messages], functions), None
    shown = [_in_template_terms(form, message) for message in messages]
    return shown, [function.definition for function in functions] or None


def _in_template_terms(form: ToolFormat, message: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(message)
    if "tool_call_id" in shown:
        shown["tool_call_id"] = _id(form, shown["tool_call_id"])
    if "tool_calls" in shown:
        shown["tool_calls"] = [
            {
                "id": _id(form, call["id"]),
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in shown["tool_calls"]
        ]
    return shown


def _id(form: ToolFormat, given: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "0", given)[-9:].rjust(9, "0") if form.ids else given


def _spelled_out(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as text alone."""
    shown = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    if message["role"] == "tool":
        return shown | {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [_call(call["name"], call["arguments"]) for call in message.get("tool_calls", ())]
    return shown | {"content": "\n".join([message["content"], *calls] if message["content"] else calls)}


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def _explained(messages: list[dict[str, Any]], functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Functions put into the system message, with examples after it; results that follow each other in one turn."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        result = message["content"].startswith("<tool_response>\n") and message["role"] == "user"
        if result and merged and merged[-1]["role"] == "user" and merged[-1]["content"].endswith("</tool_response>"):
            merged[-1] = merged[-1] | {"content": merged[-1]["content"] + "\n" + message["content"]}
        else:
            merged.append(message)
    if not functions:
        return merged
    first = functions[0]
    call = _call(first.name, _example_arguments(first.schema))
    text = _EXPLANATION.format(functions="\n".join(json.dumps(f.definition["function"]) for f in functions), call=call)
    asked = (first.description or "").strip().partition("\n")[0] or f"Call {first.name}."
    examples = [
        {"role": role, "content": said}
        for turns in (_GREETING, (asked, call))
        for role, said in zip(("user", "assistant"), turns, strict=True)
    ]
    if merged and merged[0]["role"] == "system":
        return [merged[0] | {"content": f"{merged[0]['content']}\n\n{text}"}, *examples, *merged[1:]]
    return [{"role": "system", "content": text}, *examples, *merged]


def _example_arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that show where values go: those that are required, or all if none are."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    required = schema.get("required")
    names = [name for name in properties if isinstance(required, list) and name in required] or list(properties)
    return {name: _placeholder(properties[name]) for name in names}


def _placeholder(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return "?"
    values, kind = schema.get("enum"), schema.get("type")
    if isinstance(values, list) and values:
        return values[0]
    return _PLACEHOLDERS.get(kind, "?") if isinstance(kind, str) else "?"
