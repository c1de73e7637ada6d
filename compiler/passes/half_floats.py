"""A graph that computes in float16, for chips whose matrix units take nothing wider.

Inputs, outputs, weights and constants of float32 become float16, and casts to float32 fall away. What an operator
does inside in float32 by its definition (``stash_type`` of a norm) stays: decompose afterwards.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from aicc.compiler.graph_file import INLINE_BYTES
from aicc.compiler.quantization.convert import to_float16

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class HalfFloats(InPlacePass):
    """Turn every float32 of a graph into float16."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0

    def call(self, model: ir.Model) -> PassResult:
        """Change types, constants, and the casts between the two."""
        graph = model.graph
        for value in list(graph.initializers.values()):
            if value.const_value is not None and value.const_value.dtype == _FLOAT:
                value.const_value = _half(value.const_value, str(value.name))
        values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph.all_nodes() for v in n.outputs)]
        for value in values:
            if value.dtype == _FLOAT:
                value.type = ir.TensorType(_HALF)
                self.changed += 1
        for node in list(graph.all_nodes()):
            if node.op_type == "Cast" and node.attributes["to"].as_int() in (_FLOAT, _HALF):
                _cast(node)
            for attribute in list(node.attributes.values()):
                _constant(node, attribute)
        return PassResult(model, modified=bool(self.changed))


def _half(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    if tensor.nbytes <= INLINE_BYTES:  # not later: whatever writes a graph reads those, and hides why it could not
        return ir.tensor(to_float16(tensor.numpy(), name), name=name)
    return ir.LazyTensor(
        lambda: ir.tensor(to_float16(tensor.numpy(), name)), dtype=_HALF, shape=ir.Shape(tensor.shape), name=name
    )


def _cast(node: ir.Node) -> None:
    """Drop a cast of what is float16 by now; others make float16."""
    node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
    if node.inputs[0] is not None and node.inputs[0].dtype == _HALF and not node.outputs[0].is_graph_output():
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        node.graph.remove(node, safe=True)


def _constant(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == _FLOAT:
        array = attribute.value.numpy()
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        array = np.asarray(attribute.value, np.float32)
        del node.attributes[attribute.name]
    else:
        return
    name = "value" if node.op_type == "Constant" else attribute.name
    node.attributes[name] = ir.AttrTensor(name, ir.tensor(to_float16(array, node.name or name)))
