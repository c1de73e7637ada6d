"""Softmax before opset 13 means something else: it is taken over all axes from ``axis`` on.

``Softmax<axis=a>(x)`` of opset 12 and before → ``Reshape(Softmax<axis=-1>(Flatten<axis=a>(x)), Shape(x))``,
which means the same in every opset; likewise ``LogSoftmax`` and ``Hardmax``. Chips, and some evaluators,
follow the newer meaning whatever the model says.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

_OPERATORS = ("Softmax", "LogSoftmax", "Hardmax")
_CHANGED_IN = 13


class FlattenSoftmax(InPlacePass):
    """Write the flattening out; ``refused`` says why a node was left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every softmax over more than one axis."""
        if model.opset_imports.get("", _CHANGED_IN) < _CHANGED_IN:
            for node in list(model.graph.all_nodes()):
                if node.domain == "" and node.op_type in _OPERATORS:
                    self._visit(node)
        return PassResult(model, modified=bool(self.changed))

    def _visit(self, node: ir.Node) -> None:
        axis, shape = node.attributes.get_int("axis", 1), node.inputs[0].shape
        if axis == -1 or (shape is not None and axis == len(shape) - 1):
            self.refused[node.name or str(node.outputs[0].name)] = "it is over the last axis, where both meanings agree"
            return
        x = node.inputs[0]
        flat = ir.node("Flatten", [x], attributes={"axis": axis})
        new = ir.node(node.op_type, flat.outputs, attributes={"axis": -1}, name=node.name)
        sizes = ir.node("Shape", [x])
        back = ir.node("Reshape", [new.outputs[0], sizes.outputs[0]])
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], [flat, new, sizes, back], node.outputs, back.outputs
        )
        self.changed += 1
