"""``Attention`` in products, sums and a softmax, for chips that have no operator for it.

Queries of one key head are put below each other instead of repeating the keys and values:

    scores = MatMul(Reshape(Q · scale, [0, kv_heads, -1, size]), Transpose(K))
    Y      = MatMul(Softmax(scores + bias), V)

A mask of booleans becomes a bias of 0 and :data:`HIDDEN`: minus infinity has no place in a range of integers.
A query that sees no key at all is the one case that differs: ONNX gives zeros, this some mean of the values.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from aicc.targets.static_decoder import HIDDEN


class DecomposeAttention(InPlacePass):
    """Write every attention out; ``refused`` says why a node was left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every attention the check accepts."""
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Attention":
                if reason := _why_not(node):
                    self.refused[node.name or str(node.outputs[0].name)] = reason
                else:
                    _write_out(node)
                    self.changed += 1
        return PassResult(model, modified=bool(self.changed))


def _why_not(node: ir.Node) -> str:
    """Why an attention cannot be written out; empty if it can."""
    shapes = [v.shape for v in node.inputs[:3]]
    if any(shape is None or not isinstance(shape[-1], int) for shape in shapes):
        return "the width of its queries, keys or values is not known"
    if any(v is not None for v in node.inputs[4:]):
        return "it has keys and values of earlier tokens; take them out first"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its keys, values or scores are used by other nodes too"
    if len(shapes[0]) == 4 and not all(isinstance(shape[1], int) for shape in shapes):
        return "the number of its heads is not known"
    if node.attributes.get_int("is_causal", 0) and not _lengths(node):
        return "it is causal, and how many tokens there are is not known"
    return ""


def _lengths(node: ir.Node) -> tuple[int, int] | None:
    """Numbers of queries and keys, if they are fixed."""
    lengths = node.inputs[0].shape[-2], node.inputs[1].shape[-2]
    return lengths if all(isinstance(n, int) for n in lengths) else None


def _write_out(node: ir.Node) -> None:
    tape = ir.tape.Tape()
    dtype = node.inputs[0].dtype

    def constant(value: object) -> ir.Value:
        return tape.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})

    def reshape(value: ir.Value, *sizes: int) -> ir.Value:
        return tape.op("Reshape", [value, tape.op("Constant", [], {"value_ints": list(sizes)})])

    def by_head(value: ir.Value, heads: int) -> ir.Value:
        return tape.op("Transpose", [reshape(value, 0, 0, heads, -1)], {"perm": [0, 2, 1, 3]})

    query, key, value = node.inputs[:3]
    flat = len(query.shape) == 3
    if flat:
        heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
        size = query.shape[2] // heads
        query, key, value = by_head(query, heads), by_head(key, kv_heads), by_head(value, kv_heads)
    else:
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    grouped = heads != kv_heads
    scale = node.attributes.get_float("scale", 1 / math.sqrt(size))
    query = tape.op("Mul", [query, constant(scale)])
    if grouped:
        query = reshape(query, 0, kv_heads, -1, 0)
    scores = tape.op("MatMul", [query, tape.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    if grouped:
        scores = reshape(scores, 0, heads, -1, 0)
    if cap := node.attributes.get_float("softcap", 0.0):
        capped = tape.op("Tanh", [tape.op("Div", [scores, constant(cap)])])
        scores = tape.op("Mul", [capped, constant(cap)])
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        mask = tape.op("Where", [mask, constant(0.0), constant(HIDDEN)])
    if mask is not None:
        scores = tape.op("Add", [scores, mask])
    if node.attributes.get_int("is_causal", 0):
        scores = tape.op("Add", [scores, constant(np.where(np.tri(*_lengths(node)), 0.0, HIDDEN))])
    weights = tape.op("Softmax", [scores], {"axis": -1})
    if grouped:
        weights = reshape(weights, 0, kv_heads, -1, 0)
    result = tape.op("MatMul", [weights, value])
    if grouped:
        result = reshape(result, 0, heads, -1, 0)
    if flat:
        result = reshape(tape.op("Transpose", [result], {"perm": [0, 2, 1, 3]}), 0, 0, -1)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], tape.nodes, [node.outputs[0]], [result])
