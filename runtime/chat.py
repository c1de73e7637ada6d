"""Chat templates: from a conversation to the prompt the model was trained on.

A template is a program inside a model file, so it is not trusted. It is rendered by minijinja, in
one place, :meth:`ChatTemplate.render`: fuel bounds its instructions, template and output have
largest sizes, and it gets values, never Python objects: a conversation is handed over as a
literal of the template language. Whitespace, globals and filters are those Hugging Face
templates are written for.

Not bounded is what the engine does with two kinds of value: a namespace put into itself ends the
process when it is printed, and a list added to itself again and again is walked without end. A
template can reach neither files nor Python with that, but it can take its process down. The
compiler renders every template in a process of its own first, which refuses those that do it
always; who serves artifacts of strangers should let something restart the server.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from aicc.runtime.errors import AiccError, UnsupportedError, UsageError
from aicc.runtime.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

_MAX_TEMPLATE = 64 * 1024  # characters; published ones have at most a third of it
_MAX_DEPTH = 32  # of what a conversation nests
_FUEL = 1_000_000  # instructions of the template engine, some tens of milliseconds
_FUEL_PER_CHARACTER = 100  # and more for a longer conversation
_MAX_OUTPUT = 1 << 20  # characters a template may add
_MAX_GROWTH = 16  # times the conversation it may write
_MAX_INDENT = 16
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,200}")  # no widths: "%999999999d" is a gigabyte


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        name: What messages call it, such as the model's name.
        variables: Strings it may use, such as ``bos_token``.

    Raises:
        UnsupportedError: It is too long, or not a template.
    """

    def __init__(self, source: str, name: str, variables: Mapping[str, str] | None = None) -> None:
        import minijinja

        self.name = name
        self._variables = dict(variables or {})
        self._lock = threading.Lock()  # the fuel belongs to the environment
        if len(source) > _MAX_TEMPLATE:
            raise UnsupportedError(
                f"the chat template of {name} has {len(source)} characters and may have {_MAX_TEMPLATE}.",
                "Remove it from the source model, or use the model without a template (--raw).",
            )
        self._environment = minijinja.Environment(
            loader=lambda _: None,
            trim_blocks=True,
            lstrip_blocks=True,
            debug=False,
            filters={"tojson": _tojson},
            globals={"raise_exception": self._refuse, "strftime_now": _strftime_now},
        )
        try:
            self._environment.add_template("template", _GENERATION_TAG.sub(_plain_block, source))
        except (minijinja.TemplateError, UnicodeEncodeError) as error:
            raise UnsupportedError(
                f"the chat template of {name} cannot be read: {_first_line(error)}.",
                "Correct it in the source model, or use the model without a template (--raw).",
            ) from error

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Args:
            messages: ``role`` and ``content`` of each turn, and what else the template knows.
            add_generation_prompt: Whether the prompt ends where the assistant begins to speak.
            tools: JSON schemas of functions the model may call.
            variables: JSON values for this conversation, such as ``enable_thinking``.

        Raises:
            UsageError: The template refuses the conversation, or it is not one.
            UnsupportedError: The template exceeded its bounds.
        """
        _check_messages(messages)
        context = {
            **self._variables,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        assignments = [f"{{% set {_identifier(name)} = {_literal(value)} %}}" for name, value in context.items()]
        source = "".join(assignments) + "{% include 'template' %}"
        with self._lock:
            self._environment.fuel = _FUEL + _FUEL_PER_CHARACTER * len(source)
            try:
                text: str = self._environment.render_str(source, "conversation")
            except AiccError:
                raise
            except Exception as error:  # a template can call our filters with anything
                raise self._render_error(str(error)) from error
        if len(text) > _MAX_OUTPUT + _MAX_GROWTH * len(source):
            raise self._render_error(f"it wrote {len(text)} characters, out of bounds")
        return text

    def ids(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation's prompt.

        The template's special tokens are recognised. Those in messages and tools are data and
        become ordinary tokens, so that no message can pretend to be another one's turn.
        """
        mark = str(secrets.randbits(128)).zfill(39)  # digits pass through every filter unchanged
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")

        def mask(value: Any, depth: int = 0) -> Any:
            if isinstance(value, str):
                return pattern.sub(lambda match: f"{mark}{special.index(match.group()):05d}", value)
            if depth > _MAX_DEPTH:
                return value  # refused by render
            if isinstance(value, Mapping):
                return {key: mask(item, depth + 1) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [mask(item, depth + 1) for item in value]
            return value

        text = self.render(mask(messages), add_generation_prompt, mask(tools), **variables)
        pieces = re.split(f"{mark}([0-9]{{5}})", text)
        parts = [(special[int(p)], True) if i % 2 else (p, False) for i, p in enumerate(pieces)]
        return tokenizer.encode_parts(part for part in parts if part[0])

    def _refuse(self, message: object = "") -> None:
        raise UsageError(f"the chat template of {self.name} refuses the conversation: {message}.")

    def _render_error(self, detail: str) -> AiccError:
        cause = (detail.strip().rpartition("caused by: ")[2].splitlines() or ["it failed"])[0]
        if "out of fuel" in cause or "out of bounds" in cause or "recursion" in cause:
            return UnsupportedError(
                f"the chat template of {self.name} computes without end: {cause}.",
                "Use the model without a template (--raw).",
            )
        return UsageError(
            f"the chat template of {self.name} cannot render the conversation: {cause}.",
            "Check the roles and contents of its messages.",
        )


def _plain_block(match: re.Match[str]) -> str:
    """``{% generation %}`` marks what a model is trained on; for rendering it is any block."""
    return f"{{%{match[1]} {'endif' if match[2] else 'if true'} {match[3]}%}}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """``tojson`` as Hugging Face defines it: no HTML escapes, Python's own options."""
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise UnsupportedError(f"a chat template indents JSON by {indent}, and at most {_MAX_INDENT} is allowed.")
    pair = (separators[0], separators[1]) if separators is not None else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    """The date and time now, in strftime's format."""
    if not _DATE_FORMAT.fullmatch(form):
        raise UnsupportedError(f"a chat template asks for the date in the format {form[:40]!r}, which is not allowed.")
    return datetime.now().strftime(form)


def _check_messages(messages: Messages) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError("messages must be a list of objects with a role and a content.")
    if not messages:
        raise UsageError("messages is empty.", "Send at least one message.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"messages[{i}] must be an object with a role, such as user or assistant.")


def _identifier(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UsageError(f"{name!r} is not a name a chat template can have for a variable.")
    return name


def _literal(value: Any, depth: int = 0) -> str:
    """A JSON value as a literal of the template language."""
    if depth > _MAX_DEPTH:
        raise UsageError(f"a conversation nests values more than {_MAX_DEPTH} deep.", "Flatten it.")
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a message is not valid Unicode: {error.reason}.", "Send it as UTF-8.") from error
        return json.dumps(value)  # pure ASCII; both languages read these escapes alike
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"a conversation has the key {key!r}, which is not a string.")
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item, depth + 1) for item in value) + "]"
    raise UsageError(f"a conversation has a value of type {type(value).__name__}, which is not JSON.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
