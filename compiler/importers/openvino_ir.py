"""Reads OpenVINO IR as a graph of OpenVINO's own operators, so that every later phase can look at it.

The graph is the same model layer by layer: operators in the domain ``openvino``, attributes as the
text they have in the file, constants as views of the ``.bin``. Only the openvino family runs it,
and its lowering works on the file itself; the graph tells which weights there are and who uses
them, and takes the formats the ``quantize`` phase gives them.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import onnx_ir as ir

from aicc.compiler.graph_file import INLINE_BYTES
from aicc.runtime.errors import UnsupportedError

DOMAIN = "openvino"
_NAMELESS = re.compile(r"[A-Za-z]+_\d+")  # what OpenVINO calls a node it has made itself

_CONSTANTS = {
    "f64": ir.DataType.DOUBLE,
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "i64": ir.DataType.INT64,
    "i32": ir.DataType.INT32,
    "i16": ir.DataType.INT16,
    "i8": ir.DataType.INT8,
    "i4": ir.DataType.INT4,
    "u64": ir.DataType.UINT64,
    "u32": ir.DataType.UINT32,
    "u16": ir.DataType.UINT16,
    "u8": ir.DataType.UINT8,
    "u4": ir.DataType.UINT4,
    "boolean": ir.DataType.BOOL,
}
_PORTS = {
    "FP64": ir.DataType.DOUBLE,
    "FP32": ir.DataType.FLOAT,
    "FP16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "BOOL": ir.DataType.BOOL,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U64": ir.DataType.UINT64,
    "U32": ir.DataType.UINT32,
    "U16": ir.DataType.UINT16,
    "U8": ir.DataType.UINT8,
}


def read_openvino_ir(xml: Path) -> ir.Model:
    """The graph of an IR file; no constant is read.

    Args:
        xml: The ``.xml``; its ``.bin`` lies beside it.

    Returns:
        Nodes are called as the layers are. A constant matrix ``[N, K]`` that a ``MatMul`` multiplies
        with stands behind a ``Transpose``, as in every imported graph.

    Raises:
        UnsupportedError: A constant of a type the graph cannot hold.
    """
    network = ElementTree.parse(xml).getroot()
    layers = {layer.get("id"): layer for layer in network.find("layers")}
    values = {
        (key, port.get("id")): _value(layer, port)
        for key, layer in layers.items()
        for port in layer.iterfind("output/port")
    }
    for key, layer in layers.items():
        if layer.get("type") == "Const":
            values[key, "0"].const_value = _constant(layer, values[key, "0"], xml.with_suffix(".bin"))
    sources = {
        (edge.get("to-layer"), edge.get("to-port")): values[edge.get("from-layer"), edge.get("from-port")]
        for edge in network.find("edges")
    }
    inputs, outputs, nodes = [], [], []
    for key, layer in layers.items():
        given = [sources[key, port.get("id")] for port in layer.iterfind("input/port")]
        made = [values[key, port.get("id")] for port in layer.iterfind("output/port")]
        if layer.get("type") == "Parameter":
            inputs += made
        elif layer.get("type") == "Result":
            outputs += given
        elif layer.get("type") != "Const":
            nodes += _nodes(layer, given, made)
    constants = [value for value in values.values() if value.const_value is not None]
    _name(constants)
    opsets = {"": 24, DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports=opsets, name=xml.stem)
    graph.sort()
    return ir.Model(graph, ir_version=11)


def _value(layer: ElementTree.Element, port: ElementTree.Element) -> ir.Value:
    """An output port; inputs and outputs of the model have their tensor's name, others the layer's."""
    layer_name, index = layer.get("name"), port.get("id")
    name = port.get("names", "").split(",")[0] or f"{layer_name}:{index}"
    sizes = [int(dim.text or -1) for dim in port.iterfind("dim")]
    precision = port.get("precision", "")
    return ir.Value(
        name=layer_name if layer.get("type") == "Const" else name,
        type=ir.TensorType(_PORTS[precision]) if precision in _PORTS else None,
        shape=ir.Shape([size if size >= 0 else f"{name}.{axis}" for axis, size in enumerate(sizes)]),
    )


def _constant(layer: ElementTree.Element, value: ir.Value, binary: Path) -> ir.TensorProtocol:
    data = layer.find("data").attrib
    if data["element_type"] not in _CONSTANTS:
        raise UnsupportedError(f"the constant {layer.get('name')} is of type {data['element_type']}.", "")
    dtype = _CONSTANTS[data["element_type"]]
    value.type = ir.TensorType(dtype)
    return ir.ExternalTensor(
        binary.name, int(data["offset"]), int(data["size"]), dtype,
        shape=value.shape, name=value.name, base_dir=binary.parent,
    )  # fmt: skip


def _nodes(layer: ElementTree.Element, inputs: list[ir.Value], outputs: list[ir.Value]) -> list[ir.Node]:
    """One layer, with a ``Transpose`` before it where it multiplies with a stored ``[N, K]``."""
    name, data = layer.get("name"), layer.find("data")
    text = {} if data is None else dict(data.attrib)
    attributes = [ir.AttrString(key, value) for key, value in text.items()]
    node = ir.Node(DOMAIN, layer.get("type"), inputs, attributes, outputs=outputs, name=name)
    if node.op_type != "MatMul" or text.get("transpose_b") != "true" or not _is_matrix(inputs[1]):
        return [node]
    transpose = ir.node("Transpose", [inputs[1]], {"perm": [1, 0]}, name=f"{name}.transpose")
    transposed = transpose.outputs[0]
    transposed.name, transposed.type = f"{name}.transposed", inputs[1].type
    transposed.shape = ir.Shape(reversed(inputs[1].shape))
    node.replace_input_with(1, transposed)
    return [transpose, node]


def _is_matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.shape) == 2


def _name(constants: list[ir.Value]) -> None:
    """Name large constants as the weights they were, those that lost their name after who uses them."""
    taken = {value.name for value in constants}
    for value in constants:
        if value.const_value.nbytes <= INLINE_BYTES:
            continue
        name = value.name.removeprefix("self.")
        if _NAMELESS.fullmatch(value.name) and (uses := list(value.uses())):
            user = uses[0].node.name.removeprefix("__module.").removesuffix(".transpose")
            name = f"{user}.{uses[0].idx}"
        if name not in taken:
            taken.add(name)
            value.name = name
