"""Weights as parameters during conversion, as constants in the stored graph.

No weight passes through OpenVINO while compiling. Before conversion every large initializer of
the ONNX graph becomes a graph input; after it, each is still a parameter, now of the type it is
stored in, with the decompression the plugin recognises behind it; and in the stored graph file
those parameters are turned into constants that point into the artifact's shared weights file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import openvino as ov
from onnx_ir.passes.common import RemoveUnusedNodesPass
from openvino import opset13 as op

from aicc.compiler.graph_file import INLINE_BYTES
from aicc.compiler.lowering import WeightStore
from aicc.compiler.quantization.blockwise import BlockwiseWeight, match_blockwise
from aicc.runtime.errors import UnsupportedError

ELEMENT_TYPES = {
    ir.DataType.INT4: ov.Type.i4,
    ir.DataType.UINT4: ov.Type.u4,
    ir.DataType.INT8: ov.Type.i8,
    ir.DataType.UINT8: ov.Type.u8,
    ir.DataType.INT16: ov.Type.i16,
    ir.DataType.UINT16: ov.Type.u16,
    ir.DataType.INT32: ov.Type.i32,
    ir.DataType.UINT32: ov.Type.u32,
    ir.DataType.INT64: ov.Type.i64,
    ir.DataType.UINT64: ov.Type.u64,
    ir.DataType.FLOAT: ov.Type.f32,
    ir.DataType.FLOAT16: ov.Type.f16,
    ir.DataType.BFLOAT16: ov.Type.bf16,
    ir.DataType.BOOL: ov.Type.boolean,
    ir.DataType.DOUBLE: ov.Type.f64,
}


@dataclass(frozen=True, slots=True)
class Placed:
    """A constant in the shared weights file."""

    offset: int
    bytes: int


class WeightOutline:
    """The large initializers of a graph, taken out of it.

    Args:
        model: A clone the caller gives up; its large initializers become graph inputs.
        store: The artifact's weights file.
        half_scales: Whether the plugin takes float16 scales as they are; one that does not would
            convert them at every load, and hold the copies beside its packed weights.
    """

    def __init__(self, model: ir.Model, store: WeightStore, half_scales: bool) -> None:
        self.model = model
        self._half_scales = half_scales
        self.placed: dict[str, Placed] = {}  # parameter name → where its constant is
        self._store = store
        self._blockwise: dict[str, BlockwiseWeight] = {}
        self._floats: dict[str, ir.Value] = {}
        self._take_out()
        _load_external(model)

    def _take_out(self) -> None:
        graph = self.model.graph
        _separate_outputs(graph)
        for node in list(graph):
            if node.op_type == "DequantizeLinear" and (weight := _blockwise_behind(node)) is not None:
                self._blockwise[weight.output.name] = weight
        for name, weight in self._blockwise.items():
            self._replace(weight.output, name, ir.DataType.FLOAT)
        RemoveUnusedNodesPass()(self.model)
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > INLINE_BYTES and value.uses():
                self._floats[value.name] = value
        for name, value in self._floats.items():
            self._replace(value, name, value.dtype)
            graph.initializers.pop(name)

    def _replace(self, value: ir.Value, name: str, dtype: ir.DataType) -> None:
        stand_in = ir.Value(name=f"weight:{name}", type=ir.TensorType(dtype), shape=value.shape)
        ir.convenience.replace_all_uses_with(value, stand_in)
        self.model.graph.inputs.append(stand_in)

    def attach(self, model: ov.Model) -> None:
        """Put what each weight parameter of the converted model stands for in its place.

        Quantised matrices become ``(Convert(values) - zero point) * scale`` by group, the form
        the plugins keep compressed; others keep their parameter, of their stored type.
        """
        made: list[ov.op.Parameter] = []
        for parameter in model.get_parameters():
            name = parameter.get_friendly_name()
            if not name.startswith("weight:"):
                continue
            name = name.removeprefix("weight:")
            if name in self._blockwise:
                new = self._decompress(self._blockwise[name], made)
                for target in parameter.output(0).get_target_inputs():
                    target.replace_source_output(new)
                model.remove_parameter(parameter)
            else:
                tensor = self._floats[name].const_value
                self.placed[parameter.get_friendly_name()] = self._place(tensor)
        model.add_parameters(made)
        model.validate_nodes_and_infer_types()

    def _decompress(self, weight: BlockwiseWeight, made: list[ov.op.Parameter]) -> ov.Output:
        rows, columns = (int(d) for d in weight.values.shape)
        groups = columns // weight.group_size
        grouped = [rows, groups, weight.group_size]

        def parameter(role: str, tensor: ir.TensorProtocol | np.ndarray, shape: list[int]) -> ov.Output:
            node = op.parameter(shape, _element_type(tensor), name=f"weight:{weight.output.name}:{role}")
            self.placed[node.get_friendly_name()] = self._place(tensor)
            made.append(node)
            return node.output(0)

        scales, zero_points = weight.scales.const_value, None
        if weight.minimum is not None:
            scales, zero_points = _float_zero_points(weight, np.float16 if self._half_scales else np.float32)
        elif not self._half_scales:
            scales = scales.numpy().astype(np.float32)
        compute = _element_type(scales)
        out = op.convert(parameter("values", weight.values.const_value, grouped), compute)
        if weight.zero_points is not None:
            zero = parameter("zero_points", weight.zero_points.const_value, [rows, groups, 1])
            out = op.subtract(out, op.convert(zero, compute))
        elif zero_points is not None:
            out = op.subtract(out, parameter("zero_points", zero_points, [rows, groups, 1]))
        out = op.multiply(out, parameter("scales", scales, [rows, groups, 1]))
        out = op.reshape(out, op.constant(np.array([rows, columns])), False)
        return (out if compute == ov.Type.f32 else op.convert(out, ov.Type.f32)).output(0)

    def _place(self, tensor: ir.TensorProtocol | np.ndarray) -> Placed:
        data = tensor.tobytes()
        return Placed(self._store.add(data), len(data))


def _load_external(model: ir.Model) -> None:
    """Read what stays in the graph and lies in other files: OpenVINO would look for those in the current folder."""
    ir.external_data.load_to_model(model)
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                tensor = ir.Tensor(attribute.value.numpy().copy(), attribute.value.dtype, name=attribute.value.name)
                node.attributes[name] = ir.AttrTensor(name, tensor)


def _separate_outputs(graph: ir.Graph) -> None:
    """Give every output a node of its own, so that a stored value that is one can be replaced."""
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value.producer().op_type in ("DequantizeLinear", "Reshape"):
            copy = ir.node("Identity", [value])
            graph.append(copy)
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            name, value.name = value.name, f"{value.name}.stored"
            copy.outputs[0].name = name
            graph.outputs[index] = copy.outputs[0]


def transpose_in_products(model: ov.Model) -> None:
    """Turn ``MatMul(x, Transpose(w))`` into ``MatMul(x, w, transpose_b)``, which is what is fused."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        transpose = node.input_value(1).get_node()
        if (
            transpose.get_type_name() != "Transpose"
            or transpose.input_value(1).get_node().get_type_name() != "Constant"
        ):
            continue
        order = transpose.input_value(1).get_node().data.tolist()
        if order[:-2] != list(range(len(order) - 2)) or order[-2:] != [len(order) - 1, len(order) - 2]:
            continue
        attributes = node.get_attributes()
        new = op.matmul(
            node.input_value(0), transpose.input_value(0), attributes["transpose_a"], not attributes["transpose_b"]
        )
        new.set_friendly_name(node.get_friendly_name())
        new.output(0).set_names(node.output(0).get_names())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))


def _blockwise_behind(node: ir.Node) -> BlockwiseWeight | None:
    """The widest block-wise weight that starts at this ``DequantizeLinear``."""
    value, best = node.outputs[0], match_blockwise(node.outputs[0])
    while value is not None:
        users = [u.node for u in value.uses()]
        following = users[0] if len(users) == 1 and users[0].op_type in ("Reshape", "Add", "Cast") else None
        value = following.outputs[0] if following is not None else None
        best = match_blockwise(value) or best
    return best


def _float_zero_points(weight: BlockwiseWeight, wanted: type) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points ``[N, K/g]`` with ``(q - z) * s == q * s + minimum``.

    Both are float16 where that is wanted, the source's are and the zero points fit, float32 otherwise. A group of
    equal values has scale 0 in the source and needs another here; its integers are all 0.
    """
    scales = weight.scales.const_value.numpy()
    minimum = weight.minimum.const_value.numpy().reshape(scales.shape).astype(np.float32)
    wide = scales.astype(np.float32)
    flat = (wide == 0) & (minimum != 0)
    if flat.any():
        integers = weight.values.const_value.numpy().reshape(*scales.shape, weight.group_size)
        if integers[flat].any():
            raise UnsupportedError(
                f"weight {weight.output.name} has groups with scale 0 and values that are not 0.", "Use --quant fp16."
            )
        wide = np.where(flat, np.abs(minimum), wide)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(wide == 0, 0, -minimum / wide)
    half = wanted == scales.dtype == np.float16 and np.abs(zero).max() < np.finfo(np.float16).max
    kind = np.float16 if half else np.float32
    return wide.astype(kind), zero.astype(kind)


def _element_type(tensor: ir.TensorProtocol | np.ndarray) -> ov.Type:
    if isinstance(tensor, np.ndarray):
        return ov.Type.f16 if tensor.dtype == np.float16 else ov.Type.f32
    return ELEMENT_TYPES[tensor.dtype]
