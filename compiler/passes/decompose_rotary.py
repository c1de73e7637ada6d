"""``RotaryEmbedding`` in products and sums of halves.

With the halves ``a, b`` of each head's vector: ``Concat(a · cos - b · sin, a · sin + b · cos)``. ONNX's own
definition says the same through tensors of no elements, which compilers of chips take badly.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class DecomposeRotary(InPlacePass):
    """Write every rotary embedding out; ``refused`` says why a node was left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every rotary embedding the check accepts."""
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "RotaryEmbedding":
                if reason := _why_not(node):
                    self.refused[node.name or str(node.outputs[0].name)] = reason
                else:
                    _write_out(node)
                    self.changed += 1
        return PassResult(model, modified=bool(self.changed))


def _why_not(node: ir.Node) -> str:
    """Why a rotary embedding cannot be written out; empty if it can."""
    if node.attributes.get_int("interleaved", 0):
        return "it turns neighbours, not halves"
    if node.inputs[0].shape is None or not isinstance(node.inputs[0].shape[-1], int):
        return "the width of its input is not known"
    return ""


def _write_out(node: ir.Node) -> None:
    tape = ir.tape.Tape()

    def ints(*values: int) -> ir.Value:
        return tape.op("Constant", [], {"value_ints": list(values)})

    x, *tables = node.inputs[:3]
    flat = len(x.shape) == 3  # [batch, sequence, heads · size], otherwise [batch, heads, sequence, size]
    heads = node.attributes["num_heads"].as_int() if flat else 1
    size = x.shape[-1] // heads
    turned = node.attributes.get_int("rotary_embedding_dim", 0) or size
    if flat:
        x = tape.op("Reshape", [x, ints(0, 0, heads, size)])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        tables = [tape.op("Gather", [table, node.inputs[3]]) for table in tables]
    cos, sin = (tape.op("Unsqueeze", [table, ints(2 if flat else 1)]) for table in tables)
    sizes = [turned // 2, turned // 2] + ([size - turned] if turned < size else [])
    a, b, *rest = tape.op_multi_out("Split", [x, ints(*sizes)], {"axis": -1}, num_outputs=len(sizes))
    real = tape.op("Sub", [tape.op("Mul", [a, cos]), tape.op("Mul", [b, sin])])
    imaginary = tape.op("Add", [tape.op("Mul", [a, sin]), tape.op("Mul", [b, cos])])
    result = tape.op("Concat", [real, imaginary, *rest], {"axis": -1})
    if flat:
        result = tape.op("Reshape", [result, ints(0, 0, heads * size)])
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], tape.nodes, node.outputs, [result])
