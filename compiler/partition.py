"""A graph cut between chip and host: into how many pieces, and what crosses at every step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Partition:
    """What a cut would cost.

    Attributes:
        pieces: Parts the chip would run one after another, the host between them.
        boundary_bytes: Bytes that cross from one side to the other within a step, inputs and outputs left out.
    """

    pieces: int
    boundary_bytes: int


def partition(model: ir.Model, host: Collection[str]) -> Partition:
    """Cut a graph of fixed shapes.

    Args:
        model: Its nodes in order.
        host: Names of the nodes the chip does not run.
    """
    turns: dict[ir.Node, int] = {}  # even ones are the chip's
    crossing: set[ir.Value] = set()
    for node in model.graph:
        side = int(node.name in host)
        turn = side
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker is None:
                continue
            turn = max(turn, turns[maker] + (turns[maker] % 2 != side))
            if turns[maker] % 2 != side:
                crossing.add(value)
        turns[node] = turn
    pieces = {turn for turn in turns.values() if turn % 2 == 0}
    return Partition(len(pieces), sum(map(_bytes, crossing)))


def _bytes(value: ir.Value) -> int:
    elements = math.prod(dim for dim in value.shape or () if isinstance(dim, int))
    return math.ceil(elements * value.dtype.itemsize) if value.dtype is not None else 0
