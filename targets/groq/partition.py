"""Which nodes go on which chip: a chain of neighbours, as even as the graph allows, and what crosses between them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from aicc.runtime.errors import ResourceError
from aicc.targets.groq.contract import CHIP_BYTES, MAX_CHIPS, PARAMETERS, Chip


def partition(model: ir.Model) -> tuple[Chip, ...]:
    """Cut a static graph into chips.

    The number is GroqFlow's: a power of two with at most 50 million parameters a chip; more if a chip would not
    hold its weights and cache.

    Raises:
        ResourceError: It takes more chips than the public compiler has topologies for.
    """
    nodes = list(model.graph)
    parameters = sum(math.prod(v.shape) for v in model.graph.initializers.values())
    chips = 1 << (math.ceil(max(parameters, 1) / PARAMETERS) - 1).bit_length()
    while chips <= MAX_CHIPS:
        if cuts := _cut(nodes, chips):
            return tuple(_chips(nodes, cuts))
        chips *= 2
    raise ResourceError(
        f"{parameters:,} parameters at 16 bits need more than {MAX_CHIPS} chips of {CHIP_BYTES >> 20} MiB.",
        "Choose a smaller model; `aicc plan` says how many chips it would be.",
    )


def _cut(nodes: list[ir.Node], chips: int) -> list[int] | None:
    """First nodes of so many chips, the fullest as empty as can be; None if they do not fit."""
    low, high, best = 0, CHIP_BYTES, None
    while low < high:
        limit = (low + high) // 2
        cuts = _fill(nodes, limit)
        if cuts is not None and len(cuts) <= chips:
            best, high = cuts, limit
        else:
            low = limit + 1
    if best is None:
        best = _fill(nodes, CHIP_BYTES)
    if best is None or len(best) > chips or len(nodes) < chips:
        return None
    spare = [index for index in range(len(nodes) - 1, 0, -1) if index not in best]
    return sorted([*best, *spare[: chips - len(best)]])  # a graph of one large weight leaves chips with little


def _fill(nodes: list[ir.Node], limit: int) -> list[int] | None:
    """First nodes of chips filled one after another to a limit; None if one node alone is above it."""
    cuts: list[int] = [0]
    held: set[ir.Value] = set()
    total = 0
    for index, node in enumerate(nodes):
        needed = _resident([node])
        added = sum(_bytes(value) for value in needed - held)
        if total + added > limit:
            cuts.append(index)
            held, total = set(), 0
            added = sum(map(_bytes, needed))
        if added > limit:
            return None
        held |= needed
        total += added
    return cuts


def _resident(nodes: list[ir.Node]) -> set[ir.Value]:
    """What lies in a chip's memory for its nodes: weights, and the cache, which the graph has as inputs."""
    read = {value for node in nodes for value in node.inputs if value is not None}
    return {value for value in read if value.is_initializer() or value.is_graph_input()}


def _chips(nodes: list[ir.Node], cuts: list[int]) -> Iterator[Chip]:
    place = {node: index for index, node in enumerate(nodes)}
    last = {value: max((place[use.node] for use in value.uses()), default=-1) for n in nodes for value in n.outputs}
    for first, end in zip(cuts, [*cuts[1:], len(nodes)], strict=True):
        held = _resident(nodes[first:end])
        # Whatever is made before and used here or behind comes over the link; a chain passes it on.
        crossing = [value for node in nodes[:first] for value in node.outputs if last[value] >= first]
        yield Chip(
            first,
            end - 1,
            sum(_bytes(v) for v in held if v.is_initializer()),
            sum(_bytes(v) for v in held if not v.is_initializer()),
            sum(map(_bytes, crossing)),
        )


def _bytes(value: ir.Value) -> int:
    assert value.shape is not None
    assert value.dtype is not None
    return math.prod(int(d) for d in value.shape) * int(value.dtype.itemsize)
