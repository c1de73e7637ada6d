"""Constants of the graph that are not weight matrices: vectors, numbers, tables of positions.

Importers leave small arithmetic on constants (``weight + 1``) and on positions in the graph. Both
are evaluated with ONNX's reference evaluator, the first when the constant is packed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

_LARGEST_VECTOR = 1 << 22  # elements; more is a weight, not a vector


def is_constant(value: ir.Value | None) -> bool:
    """Whether nothing a user gives reaches it."""
    return value is not None and not graph_inputs(value)


def constant_size(value: ir.Value) -> int | None:
    """Elements of a constant, None if its shape is not known."""
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return int(np.prod([int(d) for d in shape], dtype=np.int64))


def is_vector(value: ir.Value | None) -> bool:
    """Whether it is a constant small enough to be evaluated as a whole."""
    if not is_constant(value):
        return False
    size = constant_size(value)
    return size is not None and size <= _LARGEST_VECTOR


def read_constant(value: ir.Value) -> NDArray[np.generic]:
    """Its elements."""
    if value.const_value is not None:
        return value.const_value.numpy()
    return evaluate([], value, {})


def read_number(value: ir.Value | None) -> float | None:
    """The number a constant of one element is, None for anything else."""
    if value is None or not is_vector(value) or constant_size(value) != 1:
        return None
    return float(read_constant(value).reshape(-1)[0])


def positions_read(model: ir.Model, index: ir.Value, context: int) -> NDArray[np.int64] | None:
    """Which row of a table each position looks up, ``[context]``; None if that depends on more than the position."""
    if index.name == "position_ids":
        return np.arange(context)
    if any(v.name != "position_ids" for v in graph_inputs(index)):
        return None
    inputs = [v for v in model.graph.inputs if v.name == "position_ids"]

    def probe(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return evaluate(inputs, index, {"position_ids": positions[None]}).astype(np.int64).reshape(-1)

    together = probe(np.arange(context))
    for position in {0, context // 2, context - 1}:
        if not np.array_equal(probe(np.array([position])), together[position : position + 1]):
            return None
    return together


def graph_inputs(value: ir.Value) -> set[ir.Value]:
    """Inputs of the graph that reach a value."""
    found, seen, todo = set(), set(), [value]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.const_value is not None:
            continue
        node = current.producer()
        if node is None:
            found.add(current)
        else:
            todo += [i for i in node.inputs if i is not None]
    return found


def evaluate(inputs: list[ir.Value], output: ir.Value, feeds: dict[str, NDArray]) -> NDArray:
    """A value that is computed from some inputs of the graph, given those."""
    graph = output.producer().graph
    part = ir.convenience.extract(graph, inputs, [output])
    (result,) = ReferenceEvaluator(ir.to_proto(ir.Model(part, ir_version=10))).run(None, feeds)
    return result
