"""Chat templates: from a conversation to the prompt the model was trained on.

A template is a program inside a model file, so it is not trusted. It is rendered by minijinja in a
process of its own, :mod:`aicc.runtime.template_process`, which bounds its time and memory. It gets
values, never Python objects: a conversation is handed over as a literal of the template language.
Whitespace, globals and filters are those Hugging Face templates are written for.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.template_process import TemplateProcess
from aicc.runtime.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

_MAX_TEMPLATE = 64 * 1024  # characters; published ones have at most a third of it
_MAX_DEPTH = 32  # of what a conversation nests


class ChatTemplate:
    """A template; close it, or leave that to the garbage collector.

    Args:
        source: Jinja text.
        name: What messages call it, such as the model's name.
        variables: Strings it may use, such as ``bos_token``.

    Attributes:
        source: The text.

    Raises:
        UnsupportedError: It is too long, or not a template.
        ResourceError: The process that renders it cannot be started.
    """

    def __init__(self, source: str, name: str, variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.source = source
        self._variables = dict(variables or {})
        if len(source) > _MAX_TEMPLATE:
            raise UnsupportedError(
                f"the chat template of {name} has {len(source)} characters and may have {_MAX_TEMPLATE}.",
                "Remove it from the source model, or use the model without a template (--raw).",
            )
        self._process = TemplateProcess(source, name)
        weakref.finalize(self, self._process.close)
        self._process.start()

    def check(self) -> None:
        """Wait until the process has read the template; the first conversation does it else.

        Raises:
            UnsupportedError: It is not a template.
            ResourceError: The process that renders it cannot be started.
        """
        self._process.check()

    def close(self) -> None:
        """End the process that renders it."""
        self._process.close()

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
            ResourceError: The process that renders it cannot be started.
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
        return self._process.render(source)

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
                return {mask(key, depth + 1): mask(item, depth + 1) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [mask(item, depth + 1) for item in value]
            return value

        text = self.render(mask(messages), add_generation_prompt, mask(tools), **variables)
        pieces = re.split(f"{mark}([0-9]{{5}})", text)
        parts = [(special[int(p)], True) if i % 2 else (p, False) for i, p in enumerate(pieces)]
        return tokenizer.encode_parts(part for part in parts if part[0])


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
