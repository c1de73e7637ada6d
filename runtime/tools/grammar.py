"""Grammars of answers that call functions, in llguidance's form of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aicc.runtime.constraint import JSON_SPACING
from aicc.runtime.tools.formats import MOST_CALLS, Function, ToolFormat

_ANY_OBJECT = {"type": "object"}


def calls_grammar(
    form: ToolFormat, functions: Sequence[Function], most: int = MOST_CALLS, marker_token: int | None = None
) -> str:
    """A grammar of one call or more and nothing else.

    Args:
        form: How calls are written.
        functions: Those that may be called; arguments follow their schemas.
        most: Most calls.
        marker_token: The token the form's marker is, if it is a special one.
    """
    rules = _calls(form, functions, most, marker_token, [_closed(function.schema) for function in functions])
    return "\n".join([f"start: {_text(form.marker, marker_token)} calls", *rules])


def optional_calls_grammar(
    form: ToolFormat,
    functions: Sequence[Function],
    most: int = MOST_CALLS,
    marker_token: int | None = None,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """A grammar of what a model says that may call functions.

    Args:
        form: How calls are written.
        functions: Those that may be called; only arguments of strict ones follow their schemas.
        most: Most calls.
        marker_token: The token the form's marker is, if it is a special one.
        answer: JSON schema of an answer without calls; None is any text.
    """
    schemas = [_closed(function.schema) if function.strict else _ANY_OBJECT for function in functions]
    rules = _calls(form, functions, most, marker_token, schemas)
    if answer is not None:
        start = f"start: {_text(form.marker, marker_token)} calls | answer"
        rules.append(f"answer: {_json(answer)}")
    elif not form.marker:
        start = "start: calls | TEXT\nTEXT: /([^{ \\t\\r\\n](.|\\n)*)?/"
    elif marker_token is not None:
        start = f"start: TEXT ({_text(form.marker, marker_token)} calls)?\nTEXT: /(.|\\n)*/"
    else:
        start = f"start: (before calls)? REST\nbefore[lazy]: TEXT {_quoted(form.marker)}\nTEXT: /(.|\\n)*/"
        rules.append(f"REST: TEXT & ~/(?s:.*{re.escape(form.marker)}.*)/")  # no calls beyond those
    return "\n".join([start, *rules])


def _calls(
    form: ToolFormat,
    functions: Sequence[Function],
    most: int,
    marker_token: int | None,
    schemas: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Rules of ``calls``: everything after the first marker."""
    again = _text(form.marker, marker_token) + " " if form.each else ""
    more = f" ({_quoted(form.separator or '')} {again}call){{0,{most - 1}}}" if form.separator and most > 1 else ""
    rules = [
        f"calls: {_quoted(form.start)} call{more} {_quoted(form.end)}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
    ]
    for i, (function, schema) in enumerate(zip(functions, schemas, strict=True)):
        head = f'{form.opening}{{"name": {json.dumps(function.name)}, "{form.arguments}": '
        rules.append(f"call_{i}: {_quoted(head)} arguments_{i} {_quoted('}' + form.closing)}")
        rules.append(f"arguments_{i}: {_json(schema)}")
    return rules


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without arguments it does not name, unless it speaks of them: no function takes those."""
    speaks = schema.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref"}
    return schema if speaks or "properties" not in schema else {**schema, "additionalProperties": False}


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON_SPACING})


def _text(text: str, token: int | None) -> str:
    return _quoted(text) if token is None else f"<[{token}]>"


def _quoted(text: str) -> str:
    return json.dumps(text)
