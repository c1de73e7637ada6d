"""Refuses ONNX graphs whose constants would grow beyond all measure.

Runtimes compute what depends on nothing but constants while they load a graph, and a ``Range`` or a
``Loop`` of some bytes can ask them for terabytes, or for years. ONNX' shape inference tells the sizes
beforehand: in a graph whose small constants are folded, limits and shapes are there as numbers.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common

from aicc.runtime.errors import UnsupportedError

_MOST_BYTES = 1 << 30  # that all constants may be computed to, …
_GROWTH = 16  # … or times what is stored, for a graph that unpacks and rearranges its own weights
_MOST_STEPS = 1_000_000  # nodes a loop over constants may compute
_REMEDY = "Simplify it before it is exported; or do not use this model, if it is not your own."


def refuse_large_constants(model: ir.Model) -> None:
    """Refuse a graph whose constant part is too large to be computed.

    What no inference gives a size for is let through: loading is bounded in memory by itself.

    Args:
        model: A graph whose small constants are folded; it is not changed.

    Raises:
        UnsupportedError: Names the node at which it is too much.
    """
    sized = model.clone()
    # Without propagating data, which would itself compute what doubles at every node.
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(sized)
    stored = [value.const_value for value in sized.graph.initializers.values() if value.const_value is not None]
    left = _MOST_BYTES + _GROWTH * sum(tensor.nbytes for tensor in stored)
    constant = set(sized.graph.initializers.values())
    for node in sized.graph:
        if not constant.issuperset(_used(node)):
            continue
        if _steps(node) > _MOST_STEPS:
            raise _refusal(node, f"in more than {_MOST_STEPS:,} steps")
        left -= sum(_bytes(value) for value in node.outputs)
        if left < 0:
            raise _refusal(node, f"of {sum(_bytes(value) for value in node.outputs):,} bytes")
        constant.update(node.outputs)


def _used(node: ir.Node) -> set[ir.Value]:
    """The graph's values a node computes with, those its subgraphs take from outside included."""
    inner = (value for graph in _subgraphs(node) for each in graph.all_nodes() for value in each.inputs)
    return {v for v in node.inputs if v is not None} | {v for v in inner if v is not None and v.graph is node.graph}


def _steps(node: ir.Node) -> float:
    """Nodes computed by a node, those of its loops included; endless if that cannot be told."""
    inner = sum((_steps(each) for graph in _subgraphs(node) for each in graph), 1.0)
    if node.op_type != "Loop":
        return inner
    trips = ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None
    return max(float(trips.numpy().max(initial=0)), 0.0) * inner if trips is not None else math.inf


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    attributes = node.attributes.values()
    return [a.as_graph() for a in attributes if a.type == ir.AttributeType.GRAPH] + [
        graph for a in attributes if a.type == ir.AttributeType.GRAPHS for graph in a.as_graphs()
    ]


def _bytes(value: ir.Value) -> int:
    """Bytes of a value whose shape and type are known, else 0."""
    if value.shape is None or value.dtype is None or not all(isinstance(size, int) for size in value.shape):
        return 0
    return math.prod(value.shape) * (8 if value.dtype.is_string() else math.ceil(value.dtype.bitwidth / 8))


def _refusal(node: ir.Node, what: str) -> UnsupportedError:
    name = node.name or node.outputs[0].name
    return UnsupportedError(f"the {node.op_type} {name!r} computes constants {what}, which is too much.", _REMEDY)
