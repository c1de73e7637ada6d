"""The row program: what a model computes, as operations on rows.

A value is ``[T, width]`` float32 for ``T`` tokens of any sequences, or the same quantised. Every
operation but attention treats each row alone, so batch and sequence dimensions of the graph are gone.
Operations are in an order in which they can run; each names the graph's node it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aicc.compiler.rows.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Record:
    """How a row is quantised: in groups, padded with zeros to ``k`` columns.

    Attributes:
        k: Columns, a multiple of ``group``.
        group: Columns that share a scale.
        parts: 1 for int8; 2 for a second int8 of what the first leaves over.
        rounded: Whether rows of prompts are bfloat16 instead, ``k`` columns in the same place.
    """

    k: int
    group: int
    parts: int = 1
    rounded: bool = False


@dataclass(eq=False, slots=True)
class Value:
    """One result.

    Attributes:
        name: For people: the last telling part of the node's name.
        width: Columns.
        record: Set if it is quantised.
        selected: Whether it has only the rows whose logits are wanted.
    """

    name: str
    width: int
    record: Record | None = None
    selected: bool = False


@dataclass(eq=False, frozen=True, slots=True)
class Vector:
    """A constant row of float32, read when it is packed."""

    name: str
    size: int
    read: Callable[[], NDArray[np.float32]]


@dataclass(eq=False, frozen=True, slots=True)
class Angles:
    """Cosines and sines ``[positions, rotary / 2]`` of a rotary embedding."""

    name: str
    positions: int
    half: int
    read: Callable[[], NDArray[np.float32]]  # [2, positions, half]


@dataclass(frozen=True, slots=True)
class Heads:
    """An attention's constants; ``head_dim`` is with its padding."""

    query_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    soft_cap: float
    window: int
    causal: bool = True


@dataclass(eq=False, slots=True)
class Op:
    """An operation.

    Attributes:
        node: The graph's node, for comments and messages.
        output: What it makes; None for those that write to the cache or to the logits.
    """

    node: str
    output: Value | None

    def inputs(self) -> list[Value]:
        """Values it reads, in order."""
        return []


@dataclass(eq=False, slots=True)
class Embed(Op):
    """A row of a table for each token.

    Attributes:
        input: Number of the input that says which row; None if it is the token's position.
    """

    table: Matrix
    input: int | None = 0


@dataclass(eq=False, slots=True)
class _Unary(Op):
    x: Value

    def inputs(self) -> list[Value]:
        """The one value."""
        return [self.x]


@dataclass(eq=False, slots=True)
class Linear(_Unary):
    """``x Wᵀ``."""

    matrix: Matrix


@dataclass(eq=False, slots=True)
class Quantise(_Unary):
    """The same values in the form of ``output.record``."""


@dataclass(eq=False, slots=True)
class Norm(_Unary):
    """RMS or layer normalisation of each piece of ``size`` columns: of the row, or of each head."""

    size: int
    of_heads: bool
    layer: bool  # subtract the mean
    weight: Vector | None
    bias: Vector | None
    epsilon: float


@dataclass(eq=False, slots=True)
class Rope(_Unary):
    """Rotary embedding of each head."""

    head_dim: int
    rotary: int
    interleaved: bool
    angles: Angles


@dataclass(eq=False, slots=True)
class Resize(_Unary):
    """Each piece of ``size`` columns becomes one of ``to``: cut, or padded with zeros."""

    size: int
    to: int


@dataclass(eq=False, slots=True)
class Slice(_Unary):
    """Columns from ``begin`` on."""

    begin: int


@dataclass(eq=False, slots=True)
class Select(_Unary):
    """Only the rows whose logits are wanted."""


@dataclass(eq=False, slots=True)
class Elementwise(Op):
    """A function of values of one width, constant rows and numbers, column by column.

    Attributes:
        function: The ONNX operator's name, or ``Silu``, or ``GeluTanh`` for Gelu's approximation.
    """

    function: str
    operands: tuple[Value | Vector | float, ...]

    def inputs(self) -> list[Value]:
        """The operands that are values."""
        return [o for o in self.operands if isinstance(o, Value)]


@dataclass(eq=False, slots=True)
class Store(_Unary):
    """Put keys or values of the new tokens into a layer's pages."""

    layer: int
    heads: Heads
    keys: bool


@dataclass(eq=False, slots=True)
class Attend(_Unary):
    """Attention of the queries ``x`` to all that a layer's pages hold."""

    layer: int
    heads: Heads


@dataclass(eq=False, slots=True)
class Logits(_Unary):
    """The result of a decoder."""


@dataclass(eq=False, slots=True)
class Result(_Unary):
    """One of the outputs of a model of tensors."""

    number: int


@dataclass(slots=True)
class Port:
    """An input or output of a model of tensors.

    Attributes:
        name: As the graph calls it.
        shape: Its sizes, -1 where they vary.
        limit: Numbers in an input must be below it; 0 if they may be any.
    """

    name: str
    shape: tuple[int, ...]
    limit: int = 0


@dataclass(slots=True)
class Program:
    """A whole model.

    Attributes:
        vocab: Columns of the logits; 0 without.
        context: Positions a sequence may have.
        ops: In an order in which they can run.
        layers: Attentions, in the order of :attr:`Store.layer`.
        inputs: Of a model of tensors, and so are the following.
        outputs: In the order of :attr:`Result.number`.
        mask: Number of the input that hides tokens where it is 0; -1 if none does.
    """

    vocab: int
    context: int
    ops: list[Op] = field(default_factory=list)
    layers: list[Heads] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    mask: int = -1

    @property
    def generates(self) -> bool:
        """Whether it is a decoder, whose keys and values are kept from step to step."""
        return not self.outputs


__all__ = [
    "Angles", "Attend", "Elementwise", "Embed", "Heads", "Linear", "Logits", "Matrix", "Norm", "Op", "Port",
    "Program", "Quantise", "Record", "Resize", "Result", "Rope", "Select", "Slice", "Store", "Value", "Vector",
]  # fmt: skip
