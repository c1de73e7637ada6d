"""What lies beside an executable, and what both halves have to know of it."""

from __future__ import annotations

import msgspec

from aicc.runtime.artifact import TensorSpec

LAYOUT_FILE = "layout.json"
# The device that the compiler is asked for: its name there, and of the smallest group of chips it knows.
TOPOLOGIES = {"TPU v5e": "v5e:2x2", "TPU v5p": "v5p:2x2x1", "TPU v6e": "v6e:2x2", "TPU7x": "tpu7x:2x2x1"}


class Stored(msgspec.Struct, frozen=True):
    """A weight as the executable takes it: a dtype numpy or ml_dtypes knows, and where its bytes are."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class Program(msgspec.Struct, frozen=True):
    """One graph of fixed shapes: ``<name>.stablehlo`` and the executable made of it, ``<name>.bin``.

    Attributes:
        name: Of its files.
        tokens: New tokens of a step of a decoder; 0 for models of tensors.
        context: Cached and new tokens of a step of a decoder together.
        weights: Its first arguments.
        inputs: The arguments after them.
        outputs: Names of its results.
        analysis: The compiler's own figures, bytes unless the name says otherwise; estimates, nothing measured.
    """

    name: str
    tokens: int
    context: int
    weights: tuple[Stored, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    analysis: dict[str, int]


class Layout(msgspec.Struct, frozen=True):
    """The programs of a variant."""

    programs: tuple[Program, ...]
