"""From ONNX operators between ``DequantizeLinear`` and ``QuantizeLinear`` to TOSA's on integers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from aicc.targets.ethos_u.lowering.node import FIRST, LAST, Node, Refused, Tensor, array
from aicc.targets.ethos_u.lowering.program import Op, ts
from aicc.targets.ethos_u.lowering.softmax import softmax

# Ways to ask for a pixel of an image enlarged by a whole number that give the one it lies in.
_REPEATS = {("asymmetric", "floor")} | {("half_pixel", way) for way in ("round_prefer_floor", "round_prefer_ceil")}
_ADD_BITS = 20  # of head room that sums of rescaled 8-bit values get, as in TensorFlow Lite


def _conv(n: Node) -> None:
    weight, scales = n.weight(1)
    image = n.inputs[0]
    n.refuse_implicit_areas()
    if weight.ndim != 4:
        raise Refused("only convolutions in two dimensions are taken")
    group, channels = n.node.attributes.get_int("group", 1), image.shape[1]
    if group == 1:
        kernel = weight.transpose(0, 2, 3, 1)
    elif group == channels:
        kernel = weight.reshape(channels, -1, *weight.shape[2:]).transpose(2, 3, 0, 1)
    else:
        raise Refused(f"it has {group} groups of channels; 1 and one a channel are taken")
    sums = n.convolve(
        image.name,
        image.stored,
        np.ascontiguousarray(kernel),
        n.bias(2, weight.shape[0]),
        group > 1,
        strides=n.ints("strides", (1, 1)),
        pads=n.ints("pads", (0, 0, 0, 0)),
        dilations=n.ints("dilations", (1, 1)),
    )
    n.finish(sums, image.scale * scales)


def _conv_transpose(n: Node) -> None:
    """Blocks that pixels make alone: products of 1 by 1 for all places of a block, put in their places then."""
    weight, scales = n.weight(1)
    image = n.inputs[0]
    n.refuse_implicit_areas()
    if weight.ndim != 4 or n.node.attributes.get_int("group", 1) != 1:
        raise Refused("only convolutions in two dimensions and one group are taken")
    spread = {*n.ints("pads", ()), *n.ints("output_padding", ())} - {0} or {*n.ints("dilations", ())} - {1}
    if spread or weight.shape[2:] != n.ints("strides", (1, 1)):
        raise Refused("only blocks that neither overlap nor leave gaps are taken")
    channels, results, high, wide = weight.shape
    if len(scales) > 1 and n.weight_axis(1) != 1:
        raise Refused("its weights have a scale for each channel of the input")
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, 1, 1, channels))
    sums = n.convolve(image.name, image.stored, kernel, np.tile(n.bias(2, results), high * wide), False)
    _, _, rows, columns = image.shape
    factors = np.tile(np.broadcast_to(image.scale * scales / n.output.scale, results), high * wide).tolist()
    sizes = (1, rows, columns, len(kernel))
    blocks = n.program.rescale(n.part(), sums, sizes, factors, (0, n.output.zero), ("int32", "int8"))
    split, joined = (rows, columns, high, wide * results), (rows, high, columns, wide * results)
    blocks = n.program.reshape(n.part(), blocks, split)
    blocks = n.program.add(n.part(), Op.TRANSPOSE, [blocks], joined, "int8", [0, 2, 1, 3])
    n.program.reshape(n.output.name, blocks, n.output.stored)


def _gemm(n: Node) -> None:
    """Products with a constant matrix, as a convolution of 1 by 1: TOSA 1.0 has no fully connected layer."""
    attributes = n.node.attributes
    if attributes.get_int("transA", 0) or {attributes.get_float(a, 1.0) for a in ("alpha", "beta")} != {1.0}:
        raise Refused("transA, alpha and beta have to be left out")
    weight, scales = n.weight(1)
    if weight.ndim != 2:
        raise Refused("its second operand is no constant matrix")
    weight = weight if attributes.get_int("transB", 0) else weight.T
    rows = n.inputs[0]
    order = FIRST if len(rows.shape) == 4 else None
    shape = (1, prod(rows.shape[:-1]), 1, rows.shape[-1])
    kernel = np.ascontiguousarray(weight.reshape(len(weight), 1, 1, -1))
    sums = n.convolve(n.reshaped(rows, shape, order), shape, kernel, n.bias(2, len(weight)), False)
    if len(n.output.shape) == 4:
        raise Refused("products of tensors of rank 4 are not taken")
    sums = n.program.reshape(n.part(), sums, n.output.shape, "int32")
    n.finish(sums, rows.scale * scales)


def _sum(n: Node) -> None:
    terms = [n.operand(0), n.operand(1)]
    unit = 2 * max(term.scale for term in terms) / (1 << _ADD_BITS)
    wide = [
        n.program.rescale(n.part(), t.name, t.stored, [t.scale / unit], (t.zero, 0), ("int8", "int32")) for t in terms
    ]
    op = {"Add": Op.ADD, "Sub": Op.SUB}[n.node.op_type]
    n.finish(n.program.add(n.part(), op, wide, n.output.stored, "int32"), [unit])


def _product(n: Node) -> None:
    factors = [n.operand(0), n.operand(1)]
    wide = [n.program.rescale(n.part(), t.name, t.stored, [1.0], (t.zero, 0), ("int8", "int32")) for t in factors]
    shift = n.program.constant(np.zeros(1, np.int8))
    product = n.program.add(n.part(), Op.MUL, [*wide, shift], n.output.stored, "int32")
    n.finish(product, [factors[0].scale * factors[1].scale])


def _mean(n: Node) -> None:
    """Means over areas, as a convolution of each channel with ones: exact sums, rounded once."""
    image = n.inputs[0]
    if n.node.op_type == "GlobalAveragePool":
        kernel, strides = image.shape[2:], (1, 1)
    else:
        kernel, strides = n.ints("kernel_shape", ()), n.ints("strides", (1, 1))
        n.refuse_implicit_areas()
        if any(n.ints("pads", (0,))) or set(n.ints("dilations", (1,))) != {1}:
            raise Refused("means over areas with gaps, or that stand over the edge, are not taken")
    if len(image.shape) != 4:
        raise Refused("only means over areas of images are taken")
    channels = image.shape[1]
    if max(kernel) > 64:  # more than a convolution may have
        return _mean_of_all(n)
    ones = np.ones((*kernel, channels, 1), np.int8)
    sums = n.convolve(image.name, image.stored, ones, np.zeros(channels, np.int32), True, strides=strides)
    n.finish(sums, [image.scale / prod(kernel)])


def _mean_of_all(n: Node) -> None:
    image, (_, channels, rows, columns) = n.inputs[0], n.inputs[0].shape
    if n.output.shape != (1, channels, 1, 1):
        raise Refused("means over areas of up to 64 by 64, or of the whole image, are taken")
    pixels = (rows * columns, channels)
    wide = n.program.rescale(n.part(), n.reshaped(image, pixels), pixels, [1.0], (image.zero, 0), ("int8", "int32"))
    sums = n.program.add(n.part(), Op.REDUCE_SUM, [wide], (1, channels), "int32", 0)
    sums = n.program.reshape(n.part(), sums, n.output.stored, "int32")
    n.finish(sums, [image.scale / (rows * columns)])


def _maximum(n: Node) -> None:
    image = n.inputs[0]
    n.refuse_implicit_areas()
    if len(image.shape) != 4 or set(n.ints("dilations", (1,))) != {1}:
        raise Refused("only the largest of whole areas of images is taken")
    top, left, bottom, right = n.ints("pads", (0, 0, 0, 0))
    kernel, strides = n.ints("kernel_shape", ()), n.ints("strides", (1, 1))
    padded = (image.shape[2] + top + bottom, image.shape[3] + left + right)
    spare = [(size - side) % stride for size, side, stride in zip(padded, kernel, strides, strict=True)]
    if spare[0] > bottom or spare[1] > right:
        raise Refused("its areas do not cover the image")
    pad = [top, bottom - spare[0], left, right - spare[1]]
    attributes = (list(kernel), list(strides), pad, ts.NanPropagationMode.PROPAGATE)
    pooled = n.program.add(n.part(), Op.MAX_POOL2D, [image.name], n.output.stored, "int8", *attributes)
    n.finish(pooled, [image.scale], image.zero, "int8")


def _enlarge(n: Node) -> None:
    """Every pixel repeated, across and then down."""
    image, attributes = n.inputs[0], n.node.attributes
    mode = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    nearest = attributes.get_string("nearest_mode", "round_prefer_floor")
    if attributes.get_string("mode", "nearest") != "nearest" or (mode, nearest) not in _REPEATS:
        raise Refused("only enlarging by repeating pixels is taken")
    if len(image.shape) != 4 or image.shape[:2] != n.output.shape[:2]:
        raise Refused("only images are enlarged")
    if any(after % before for before, after in zip(image.shape, n.output.shape, strict=True)):
        raise Refused("only enlarging by whole numbers is taken")
    name, (_, channels, rows, columns) = image.name, image.shape
    down, across = n.output.shape[2] // rows, n.output.shape[3] // columns
    for count, apart in ((across, (rows * columns, 1, channels)), (down, (rows, 1, columns * across * channels))):
        pieces = n.program.reshape(n.part(), name, apart)
        name = n.program.add(n.part(), Op.CONCAT, [pieces] * count, (apart[0], count, apart[2]), "int8", 1)
    name = n.program.reshape(n.part(), name, n.output.stored)
    n.finish(name, [image.scale], image.zero, "int8")


def _reshape(n: Node) -> None:
    value = n.inputs[0]
    order = FIRST if len(value.shape) == 4 else None
    if len(n.output.shape) == 4 and len(value.shape) != 4:
        first = Tensor(n.reshaped(value, n.output.shape), n.output.shape, value.scale, value.zero)
        result = n.program.add(n.part(), Op.TRANSPOSE, [first.name], n.output.stored, "int8", list(LAST))
    elif len(n.output.shape) == 4:
        raise Refused("it changes the sizes of an image")
    else:
        result = n.reshaped(value, n.output.shape, order)
    n.finish(result, [value.scale], value.zero, "int8")


def _transpose(n: Node) -> None:
    value = n.inputs[0]
    order = n.ints("perm", range(len(value.shape))[::-1])
    if len(order) == 4:  # of the stored axes: undo channels last, reorder, and put them last again
        order = tuple(LAST.index(order[axis]) for axis in LAST)
    moved = n.program.add(n.part(), Op.TRANSPOSE, [value.name], n.output.stored, "int8", list(order))
    n.finish(moved, [value.scale], value.zero, "int8")


def _concat(n: Node) -> None:
    axis = n.node.attributes.get_int("axis", 0) % len(n.output.shape)
    parts = [
        n.program.rescale(
            n.part(), t.name, t.stored, [t.scale / n.output.scale], (t.zero, n.output.zero), ("int8", "int8")
        )
        for t in (n.operand(i) for i in range(len(n.inputs)))
    ]
    place = LAST.index(axis) if len(n.output.shape) == 4 else axis
    n.program.add(n.output.name, Op.CONCAT, parts, n.output.stored, "int8", place)


def _table(n: Node) -> None:
    """Any function of one tensor's values: it has 256 results, which ONNX's own evaluator computes."""
    varying = [i for i, t in enumerate(n.inputs) if t is not None and t.values is None]
    if len(varying) != 1:
        raise Refused("it has no TOSA form here")
    steps = np.arange(-128, 128, dtype=np.float32)
    inputs = {}
    for index, (value, tensor) in enumerate(zip(n.node.inputs, n.inputs, strict=True)):
        if value is None:
            continue
        if index == varying[0]:
            inputs[value.name] = ((steps - tensor.zero) * np.float32(tensor.scale)).astype(np.float32)
            continue
        fixed = array(value) if tensor is None else (tensor.values.astype(np.float32) - tensor.zero) * tensor.scale
        if fixed is None or fixed.size != 1:
            raise Refused("its other operands are not single constants")
        inputs[value.name] = np.asarray(fixed, np.float32).reshape(())
    proto = ir.serde.serialize_node(n.node)
    specs = [onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in inputs.items()]
    result = onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.FLOAT, [256])
    graph = onnx.helper.make_graph([proto], "table", specs, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", n.node.graph.opset_imports[""])])
    found = ReferenceEvaluator(model).run(None, inputs)[0]
    table = np.clip(np.rint(found / n.output.scale) + n.output.zero, -128, 127).astype(np.int8)
    source = n.inputs[varying[0]]
    n.program.add(n.output.name, Op.TABLE, [source.name, n.program.constant(table)], n.output.stored, "int8")


_TABLES = (
    "Abs", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Mish", "Neg", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt",
    "Tanh",
)  # fmt: skip
OPERATORS: dict[str, Callable[[Node], None]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _gemm,
    "Add": _sum, "Sub": _sum, "Mul": _product,
    "GlobalAveragePool": _mean, "AveragePool": _mean, "MaxPool": _maximum, "Concat": _concat, "Transpose": _transpose,
    "Resize": _enlarge, "Softmax": softmax,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(_TABLES, _table),
}  # fmt: skip
