"""Block-wise quantised weights in the graph, built and recognised in one place.

A weight matrix ``W [N, K]`` whose rows are cut into groups of ``g`` is, in standard ONNX,

    DequantizeLinear(values [N, K], scales [N, K/g], zero_points [N, K/g]?, axis=1, block_size=g)

and, for formats that scale from a minimum (GGUF's Q4_1, Q4_K …), the same without zero points,
followed by ``Reshape [N, K/g, g]``, ``Add minimum [N, K/g, 1]`` and ``Reshape [N, K]``, so that
``w = scale * q + minimum`` exactly. Scales and minima stored as FLOAT16 go through a ``Cast`` to
FLOAT first: ``DequantizeLinear`` computes in the type of its scales, and in float16 it would round
the product. The result is used as it is by ``Gather`` (embeddings) and through ``Transpose`` by
``MatMul``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class BlockwiseWeight:
    """A quantised matrix as it stands in the graph.

    Attributes:
        values: Initializer ``[N, K]`` of INT4, UINT4, INT8, UINT8 or FLOAT8E4M3FN.
        scales: Initializer ``[N, K/g]``, FLOAT or FLOAT16 (as stored, before the ``Cast``).
        zero_points: Initializer ``[N, K/g]`` of the values' type, or None.
        minimum: Initializer ``[N, K/g, 1]`` of the scales' type, or None.
        group_size: Values along K that share a scale.
        output: The float ``[N, K]`` value the rest of the graph uses.
    """

    values: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    minimum: ir.Value | None
    group_size: int
    output: ir.Value

    @property
    def bits(self) -> int:
        """Bits a stored value."""
        return 4 if self.values.dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8

    @property
    def dtype(self) -> str:
        """What :class:`aicc.runtime.target.WeightFormat` calls the stored type: empty for integers."""
        return "float8e4m3" if self.values.dtype == ir.DataType.FLOAT8E4M3FN else ""

    @property
    def offset(self) -> str:
        """The name :class:`aicc.runtime.target.WeightFormat` gives this kind of zero point."""
        if self.minimum is not None:
            return "float"
        return "none" if self.zero_points is None else "integer"


def add_blockwise(
    graph: ir.Graph,
    name: str,
    values: ir.TensorProtocol,
    scales: ir.TensorProtocol,
    group_size: int,
    zero_points: ir.TensorProtocol | None = None,
    minimum: ir.TensorProtocol | None = None,
) -> ir.Value:
    """Add a quantised matrix to the front of a graph and return its float ``[N, K]`` value.

    Args:
        graph: Graph that gets the initializers and nodes.
        name: Name of the resulting value; initializers are called ``<name>.values`` and so on.
        values: ``[N, K]`` INT4, UINT4, INT8, UINT8 or FLOAT8E4M3FN tensor, may be lazy.
        scales: ``[N, K/group_size]`` FLOAT or FLOAT16 tensor; the result is FLOAT either way.
        group_size: Values along K that share a scale.
        zero_points: ``[N, K/group_size]`` of the values' type.
        minimum: ``[N, K/group_size, 1]`` of the scales' type; excludes ``zero_points``.
    """
    if zero_points is not None and minimum is not None:
        raise ValueError("a weight has zero points or a minimum, not both")
    rows, columns = (int(d) for d in values.shape)
    initializer = {}
    for role, tensor in (("values", values), ("scales", scales), ("zero_points", zero_points), ("minimum", minimum)):
        if tensor is None:
            continue
        value = ir.Value(
            name=f"{name}.{role}", type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        graph.register_initializer(value)
        initializer[role] = value
    nodes: list[ir.Node] = []
    single = ir.DataType.FLOAT

    def emit(op_type: str, inputs: list[ir.Value], shape: list[int], dtype: ir.DataType, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes or None)
        node.outputs[0].name = f"{name}.{op_type.lower()}.{len(nodes)}"
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = ir.Shape(shape)
        nodes.append(node)
        return node.outputs[0]

    def constant_shape(role: str, shape: list[int]) -> ir.Value:
        tensor = ir.tensor(shape, dtype=ir.DataType.INT64, name=f"{name}.{role}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        graph.register_initializer(value)
        return value

    def as_float(role: str) -> ir.Value:
        value = initializer[role]
        return value if value.dtype == single else emit("Cast", [value], list(value.shape), single, to=int(single))

    inputs = [initializer["values"], as_float("scales")]
    if zero_points is not None:
        inputs.append(initializer["zero_points"])
    out = emit("DequantizeLinear", inputs, [rows, columns], single, axis=1, block_size=group_size)
    if minimum is not None:
        groups = columns // group_size
        grouped = [rows, groups, group_size]
        out = emit("Reshape", [out, constant_shape("grouped", grouped)], grouped, single)
        out = emit("Add", [out, as_float("minimum")], grouped, single)
        out = emit("Reshape", [out, constant_shape("flat", [rows, columns])], [rows, columns], single)
    out.name = name
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    return out


def match_blockwise(value: ir.Value | None) -> BlockwiseWeight | None:
    """The quantised matrix that ``value`` is the float form of, or None if it is not one."""
    node = value.producer() if value is not None else None
    minimum = None
    if node is not None and node.op_type == "Reshape":
        add = node.inputs[0].producer()
        reshape = add.inputs[0].producer() if add is not None and add.op_type == "Add" else None
        if reshape is None or reshape.op_type != "Reshape":
            return None
        minimum, node = _stored(add.inputs[1]), reshape.inputs[0].producer()
        if minimum is None or minimum.const_value is None:
            return None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    values, scales = node.inputs[0], _stored(node.inputs[1])
    zero_points = node.inputs[2] if len(node.inputs) > 2 else None
    constants = [values, scales] + ([zero_points] if zero_points is not None else [])
    group_size = node.attributes.get_int("block_size", 0)
    if any(v.const_value is None for v in constants) or not group_size:
        return None
    if values.shape is None or len(values.shape) != 2 or node.attributes.get_int("axis", 1) not in (1, -1):
        return None
    return BlockwiseWeight(values, scales, zero_points, minimum, group_size, value)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The constant behind the ``Cast`` of scales or minima, or the value itself."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "Cast" else value
