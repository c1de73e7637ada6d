"""Options of a command from files: ``./aicc.toml``, and below it ``$XDG_CONFIG_HOME/aicc/config.toml``.

Click itself puts the command line above the environment and both above these files.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import click

from aicc.cli.output import note
from aicc.runtime.errors import UsageError

LOCAL = Path("aicc.toml")
# What TOML must give for an option: Click would take true for 1 and 1.5 for 1.
_KINDS: tuple[tuple[type[click.ParamType], tuple[type, ...], str], ...] = (
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
)


class ConfiguredCommand(click.Command):
    """A command whose options may also stand in the table of its name in the files, and in ``AICC_*``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the files before the options, unless only help is wanted."""
        asks_help = bool({"--help", "-h"} & set(args))
        if not extra.get("resilient_parsing") and not asks_help:
            extra["default_map"] = self._defaults()
        return super().make_context(info_name, args, parent, auto_envvar_prefix="AICC", **extra)

    def _defaults(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        for path in (_global(), LOCAL):
            if path.exists() and (options := self._table(path)):
                note(f"options from {path}: {', '.join(options)}")
                defaults |= options
        return defaults

    def _table(self, path: Path) -> dict[str, Any]:
        """The options one file gives, by the names of the command's parameters."""
        document = _read(path)
        if unknown := sorted(set(document) - {self.name}):
            raise UsageError(f"{path} has the unknown key {unknown[0]!r}.", f"What it may have is [{self.name}].")
        table = document.get(self.name or "", {})
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {self.name} is no table.", f"Write options under [{self.name}].")
        options = {option.opts[-1].removeprefix("--"): option for option in self.params if type(option) is click.Option}
        found = {}
        for key, value in table.items():
            if key not in options:
                known = ", ".join(sorted(options))
                raise UsageError(f"{path} has the unknown key {key!r} in [{self.name}].", f"It may have: {known}.")
            name = options[key].name
            assert name is not None
            found[name] = _value(path, key, options[key], value)
        return found


def _global() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "aicc", "config.toml")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error


def _value(path: Path, key: str, option: click.Option, value: Any) -> Any:
    """A value that the option takes; a path is taken from the folder its file is in."""
    values = value if option.multiple and isinstance(value, list) else [value]
    kinds, what = next(((k, w) for kind, k, w in _KINDS if isinstance(option.type, kind)), ((str,), "a string"))
    for one in values:
        if type(one) not in kinds:
            raise UsageError(f"{path}: {key} is {one!r} and must be {what}.")
        try:
            option.type.convert(one, option, None)
        except click.BadParameter as error:
            raise UsageError(f"{path}: {key}: {error.message}") from error
    if isinstance(option.type, click.Path):
        values = [str(path.parent / one) for one in values]
    return values if option.multiple else values[0]
