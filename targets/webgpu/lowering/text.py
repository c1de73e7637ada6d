"""WGSL as text: the kernels' templates, and literals."""

from __future__ import annotations

from functools import cache
from importlib import resources
from string import Template

import numpy as np


@cache
def template(name: str) -> str:
    """The text of ``wgsl/<name>.wgsl``."""
    return (resources.files(__package__) / "wgsl" / f"{name}.wgsl").read_text()


def filled(text: str, **words: object) -> str:
    """A template with its ``$words``."""
    return Template(text).substitute(words)


def number(value: float) -> str:
    """A float32 literal."""
    return f"{float(np.float32(value))!r}f"


def constants(**numbers: int | float) -> str:
    """Declarations: whole numbers as u32."""
    lines = [
        f"const {name} = {f'{value}u' if isinstance(value, int) else number(value)};" for name, value in numbers.items()
    ]
    return "\n".join(lines)
