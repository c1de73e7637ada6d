"""Operators that ONNX itself defines by others (``RMSNormalization``, ``RotaryEmbedding``, ``Gelu``, …) in those.

The bodies are the specification's own, specialised by it to a node's attributes and types. They ask for shapes
they could know, so fold constants afterwards.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import InlinePass


class DecomposeFunctions(InPlacePass):
    """Put the definition in place of each node; ``refused`` says why one was left as it is.

    Args:
        operators: Those of ONNX to decompose.
    """

    def __init__(self, operators: Collection[str]) -> None:
        super().__init__()
        self.operators = operators
        self.changed = 0
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Replace every node of the operators that ONNX defines by others, those in such definitions too."""
        while self._replace(model):
            pass
        return PassResult(model, modified=bool(self.changed))

    def _replace(self, model: ir.Model) -> int:
        """How many nodes there were."""
        version, before = model.opset_imports.get("", 1), self.changed
        for node in list(model.graph.all_nodes()):
            if node.domain != "" or node.op_type not in self.operators:
                continue
            if (body := _definition(node, version)) is None:
                self.refused[node.name or str(node.outputs[0].name)] = "ONNX does not define it by other operators"
                continue
            node.overload = str(self.changed)  # a definition for each, as it depends on the node
            function = ir.from_proto(body)
            function.overload = node.overload
            function.opset_imports[""] = version
            model.functions[function.identifier()] = function
            self.changed += 1
        InlinePass(lambda function: function.domain == "")(model)
        return self.changed - before


def _definition(node: ir.Node, version: int) -> onnx.FunctionProto | None:
    """A node's operator by others of an opset."""
    schema = onnx.defs.get_schema(node.op_type, version, "")
    for name, attribute in schema.attributes.items():  # bodies refer to them all
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = ir.from_proto(attribute.default_value)
    by_types = [v for v in schema.context_dependent_function_opset_versions if v <= version]
    by_name = [v for v in schema.function_opset_versions if v <= version]
    if by_types:
        types = [_type(value).SerializeToString() for value in node.inputs]
        data = ir.to_proto(node).SerializeToString()
        body = schema.get_context_dependent_function_with_opset_version(max(by_types), data, types)
    elif by_name:
        body = schema.get_function_with_opset_version(max(by_name))
    else:
        return None
    if not body:
        return None
    function = onnx.FunctionProto.FromString(body)
    del function.output[len(node.outputs) :]  # optional ones that it lists, but makes only when asked
    return function


def _type(value: ir.Value | None) -> onnx.TypeProto:
    if value is None or value.dtype is None:
        return onnx.TypeProto()
    sizes = None if value.shape is None else [dim if isinstance(dim, int) else None for dim in value.shape]
    return onnx.helper.make_tensor_type_proto(value.dtype.value, sizes)
