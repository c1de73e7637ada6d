"""``docs/cli.md``, made from the commands' own help and from the documents ``--json`` prints."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from inspect import cleandoc, getdoc
from types import UnionType
from typing import Any

import click
import msgspec

from aicc.cli import documents, inspection
from aicc.cli.main import cli
from aicc.compiler.check import CheckReport
from aicc.compiler.plan.planning import PlanReport
from aicc.compiler.report import CompileReport
from aicc.runtime.artifact import Manifest, Quality
from aicc.runtime.bench import DecoderBench, TensorBench

INTRODUCTION = """
# The command line

<!-- Generated from the commands themselves: `make docs`. -->

Results go to stdout and nothing else does, so every command can stand in a pipe. Progress and
remarks go to stderr: a spinner on a terminal, plain lines elsewhere. A command that fails says
why, and what to do, on one line of stderr. With `AICC_DEBUG=1` in the environment it also prints
the Python traceback.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug in aicc |
| 2 | wrong usage: an option, a value, a path, a prompt that does not fit |
| 3 | a model, operator or number format that cannot be handled |
| 4 | an artifact, a target and this machine do not fit together, or a part of aicc is not installed |
| 5 | not enough memory or disk |
| 6 | more quality was lost than allowed |
| 7 | a file is damaged: truncated, changed, inconsistent |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM; nothing half-made is left |

MODEL is what the compiler reads: a Hugging Face folder, a hub id (`org/name`), a `.gguf` or `.onnx`
file, or a name known to `aicc pull`. ARTIFACT is what it makes: a folder, usually `NAME.aicc`.

The shell completes commands and options after `eval "$(_AICC_COMPLETE=bash_source aicc)"`
(`zsh_source` for zsh; for fish, `_AICC_COMPLETE=fish_source aicc | source`).

Sizes in JSON are bytes, times seconds. New fields may be added to an object; none changes its meaning.
"""

# What each command prints with --json. Objects that another page describes are not taken apart here.
DOCUMENTS: dict[str, tuple[type, ...]] = {
    "check": (CheckReport,),
    "plan": (PlanReport,),
    "compile": (inspection.CompileDocument,),
    "run": (documents.RunDocument, documents.RunTensorsDocument),
    "inspect": (inspection.InspectDocument,),
    "bench": (DecoderBench, TensorBench),
    "eval": (Quality,),
    "targets": (documents.TargetsDocument,),
    "doctor": (documents.DoctorDocument,),
}
ELSEWHERE = {Manifest: "artifact-format.md", CompileReport: "artifact-format.md"}
WORDS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION.strip()]
    context = click.Context(cli, info_name="aicc")
    for name in cli.list_commands(context):
        parts += _command(name, cli.commands[name], context)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield f"## aicc {name}"
    yield f"```\n{context.get_usage().removeprefix('Usage: ')}\n```"
    yield cleandoc(command.help or "")
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    rows = [f"| `{_cell(record[0])}` | {_cell(record[1])} |" for record in records if record]
    yield "\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else "It has no options."
    for document in DOCUMENTS.get(name, ()):
        yield from _object(document)


def _object(root: type) -> Iterator[str]:
    """Tables of an object's fields and of the objects inside it."""
    waiting, done = [root], set()
    while waiting:
        kind = waiting.pop(0)
        if kind in done:
            continue
        done.add(kind)
        meanings = field_meanings(kind)
        rows = [f"| `{name}` | {_type(hint)} | {_cell(meanings[name])} |" for name, hint in fields(kind)]
        summary = (getdoc(kind) or "").splitlines()[0].replace("``", "`")
        yield summary if kind is root else f"`{kind.__name__}`: {summary[0].lower()}{summary[1:]}"
        yield "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])
        waiting += [inner for _, hint in fields(kind) for inner in _objects_in(hint)]


def fields(kind: type) -> list[tuple[str, Any]]:
    """Names and types of a document's fields."""
    hints = typing.get_type_hints(kind)
    if issubclass(kind, msgspec.Struct):
        return [(field.encode_name, hints[field.name]) for field in msgspec.structs.fields(kind)]
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind)]  # type: ignore[arg-type]


def field_meanings(kind: type) -> dict[str, str]:
    """What the ``Attributes`` section of a class says of each field."""
    _, _, section = (getdoc(kind) or "").partition("Attributes:\n")
    section = section.split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def _objects_in(hint: Any) -> Iterator[type]:
    for inner in typing.get_args(hint):
        yield from _objects_in(inner)
    if isinstance(hint, type) and hint not in ELSEWHERE and hint not in WORDS and not typing.get_args(hint):
        yield hint


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    if origin in (list, tuple):
        return f"array of {_type(arguments[0])}"
    if hint in ELSEWHERE:
        return f"[object]({ELSEWHERE[hint]})"
    return WORDS.get(hint) or f"`{hint.__name__}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
