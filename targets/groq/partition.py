"""Which nodes go on which chip: a chain of neighbours, as even as the graph allows, and what crosses between them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from aicc.runtime.errors import ResourceError
from aicc.targets.groq.contract import PARAMETERS, Chip
from aicc.targets.groq.target import CHIP_BYTES, MAX_CHIPS


def partition(model: ir.Model) -> tuple[Chip, ...]:
    """Cut a static graph into chips.

    The number is GroqFlow's: a power of two with at most 50 million parameters a chip; more if a chip would not
    hold its weights, its cache and what is computed on it.

    Raises:
        ResourceError: It takes more chips than the public compiler has topologies for, or a node takes more than one.
    """
    work = _Work(list(model.graph))
    parameters = sum(math.prod(v.shape) for v in model.graph.initializers.values())
    chips = 1 << (math.ceil(max(parameters, 1) / PARAMETERS) - 1).bit_length()
    while chips <= MAX_CHIPS:
        if cuts := _cut(work, chips):
            return tuple(_chips(work, cuts))
        chips *= 2
    for index, node in enumerate(work.nodes):
        if (needed := sum(map(_bytes, _resident([node]))) + work.alive[index]) > CHIP_BYTES:
            raise ResourceError(
                f"{node.op_type} ({node.name or node.outputs[0].name}) needs {needed:,} bytes at a time, and a chip "
                f"has {CHIP_BYTES:,}.",
                "Compile it for a shorter context or smaller inputs (--size), or for another target.",
            )
    raise ResourceError(
        f"{parameters:,} parameters at 16 bits, with cache and activations, need more than {MAX_CHIPS} chips of "
        f"{CHIP_BYTES >> 20} MiB.",
        "Choose a smaller model; `aicc plan` says how many chips it would be.",
    )


class _Work:
    """The nodes of a graph in their order, and what their results take.

    Attributes:
        nodes: In the order they run.
        last: Index of the last node that reads a node's result.
        alive: By node, bytes of the results of nodes that are needed while it runs, its own among them.
        kept: By node, bytes of its results that are the graph's: a chip keeps them until the host has them.
    """

    def __init__(self, nodes: list[ir.Node]) -> None:
        self.nodes = nodes
        place = {node: index for index, node in enumerate(nodes)}
        self.last = {
            value: max((place[use.node] for use in value.uses()), default=place[node])
            for node in nodes
            for value in node.outputs
        }
        starts, ends = [0] * len(nodes), [0] * (len(nodes) + 1)
        self.kept = [0] * len(nodes)
        for value, last in self.last.items():
            first, size = place[value.producer()], _bytes(value) if value.shape is not None else 0  # nobody reads it
            if value.is_graph_output():
                self.kept[first] += size
            starts[first] += size
            ends[last + 1] += size
        now, self.alive = 0, []
        for start, end in zip(starts, ends[:-1], strict=True):
            now += start - end
            self.alive.append(now)

    def most(self, first: int, end: int) -> int:
        """The most bytes that results take at a time on a chip with these nodes."""
        kept, most = 0, 0
        for index in range(first, end):
            most = max(most, kept + self.alive[index])
            kept += self.kept[index]
        return most


def _cut(work: _Work, chips: int) -> list[int] | None:
    """First nodes of so many chips, the fullest as empty as can be; None if they do not fit."""
    low, high, best = 0, CHIP_BYTES, None
    while low < high:
        limit = (low + high) // 2
        cuts = _fill(work, limit)
        if cuts is not None and len(cuts) <= chips:
            best, high = cuts, limit
        else:
            low = limit + 1
    if best is None:
        best = _fill(work, CHIP_BYTES)
    if best is None or len(best) > chips or len(work.nodes) < chips:
        return None
    spare = [index for index in range(len(work.nodes) - 1, 0, -1) if index not in best]
    return sorted([*best, *spare[: chips - len(best)]])  # a graph of one large weight leaves chips with little


def _fill(work: _Work, limit: int) -> list[int] | None:
    """First nodes of chips filled one after another to a limit; None if one node alone is above it."""
    cuts: list[int] = [0]
    held: set[ir.Value] = set()
    total = kept = most = 0
    for index, node in enumerate(work.nodes):
        needed = _resident([node])
        added = sum(_bytes(value) for value in needed - held)
        if total + added + max(most, kept + work.alive[index]) > limit:
            cuts.append(index)
            held, total, kept, most = set(), 0, 0, 0
            added = sum(map(_bytes, needed))
        most = max(most, kept + work.alive[index])
        if added + most > limit:
            return None
        held |= needed
        total += added
        kept += work.kept[index]
    return cuts


def _resident(nodes: list[ir.Node]) -> set[ir.Value]:
    """What lies in a chip's memory for its nodes: weights, and the cache, which the graph has as inputs."""
    read = {value for node in nodes for value in node.inputs if value is not None}
    return {value for value in read if value.is_initializer() or value.is_graph_input()}


def _chips(work: _Work, cuts: list[int]) -> Iterator[Chip]:
    for first, end in zip(cuts, [*cuts[1:], len(work.nodes)], strict=True):
        held = _resident(work.nodes[first:end])
        # Whatever is made before and used here or behind comes over the link; a chain passes it on.
        crossing = [value for node in work.nodes[:first] for value in node.outputs if work.last[value] >= first]
        yield Chip(
            first,
            end - 1,
            sum(_bytes(v) for v in held if v.is_initializer()),
            sum(_bytes(v) for v in held if not v.is_initializer()),
            sum(map(_bytes, crossing)),
            work.most(first, end),
        )


def _bytes(value: ir.Value) -> int:
    assert value.shape is not None
    assert value.dtype is not None
    return math.prod(int(d) for d in value.shape) * int(value.dtype.itemsize)
