"""The constants of the cost model and the figures it is held against, from one file."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

Grade = Literal["published", "secondary", "inferred"]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number, and where it is from.

    Attributes:
        value: In the unit's terms.
        unit: What it counts.
        grade: How good the source is; the file's first lines say what the words mean.
        source: Where it is from, or what it was fitted to.
    """

    value: float
    unit: str
    grade: Grade
    source: str


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder of the Llama kind, by its sizes."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published figure.

    Attributes:
        name: What was measured.
        target: On what.
        use: ``calibration`` if constants were fitted to it.
        measured: The figure.
        unit: Of the figure.
        source: Where it is from.
        model: The decoder; None for others.
        chips: How many were used; 0 if that is not said.
        context: Tokens of context.
        outcome: How the model did on a held-out figure, as first compared.
    """

    name: str
    target: str
    use: Literal["calibration", "held-out"]
    measured: float
    unit: str
    source: str
    model: Shape | None = None
    chips: int = 0
    context: int = 2048
    outcome: str = ""


@cache
def _file() -> dict[str, object]:
    return tomllib.loads((resources.files("aicc.compiler.plan") / "constants.toml").read_text("utf-8"))


@cache
def constants() -> dict[str, dict[str, Constant]]:
    """Constants by chip (``groq``, ``cerebras-wse2``, …) and name."""
    chips = {chip: values for chip, values in _file().items() if chip != "figure"}
    return msgspec.convert(chips, dict[str, dict[str, Constant]])


@cache
def figures() -> tuple[Figure, ...]:
    """Published figures, those constants were fitted to first."""
    return msgspec.convert(_file()["figure"], tuple[Figure, ...])


def values(*chips: str) -> dict[str, float]:
    """Bare numbers of a chip; of several, later ones' names come on top."""
    return {name: constant.value for chip in chips for name, constant in constants().get(chip, {}).items()}
