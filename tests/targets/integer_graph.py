"""A calibrated graph in exact integers, by nothing but numpy and Python: what a program for integers has to compute.

Sums are those of int8 products; a sum becomes an int8 value through a factor of 31 bits, rounded
half up once, as TOSA's RESCALE is defined. Written from the definitions, not from the lowering.
"""

import math

import numpy as np
import onnx
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Integers = NDArray[np.int64]


def rescale(values: Integers, scale: float) -> Integers:
    """``values * scale``, rounded half up."""
    shift = 30 - math.floor(math.log2(scale))
    multiplier = round(scale * 2**shift)
    return (values * multiplier + (1 << (shift - 1))) >> shift


def evaluate(model: ir.Model, images: NDArray[np.float32]) -> Integers:
    """The last integers of a graph of convolutions, sums, means and products, for images ``[N, C, H, W]``."""
    known: dict[ir.Value, Integers] = {}
    results: dict[ir.Value, tuple[Integers, float | NDArray]] = {}

    def constant(value: ir.Value) -> NDArray:
        return ir.convenience.get_const_tensor(value).numpy()

    def operand(value: ir.Value) -> tuple[Integers, float | NDArray]:
        """Integers without their zero point, and their scale."""
        integers, scale, zero = value.producer().inputs
        held = known[integers] if integers in known else constant(integers).astype(np.int64)
        step = constant(scale).astype(np.float64)
        return held - int(constant(zero).reshape(-1)[0]), float(step) if step.size == 1 else step

    last = None
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            scale, zero = (constant(value) for value in node.inputs[1:])
            source = node.inputs[0]
            if source.is_graph_input():
                steps = np.rint(images / np.float32(scale)).astype(np.int64)
            else:
                sums, unit = results.pop(source)
                if unit is None:  # floats: one of 256 results that a table has
                    last = known[node.outputs[0]] = _nearest(sums, scale, zero)
                    continue
                ratio = np.broadcast_to(np.atleast_1d(unit), (sums.shape[1],)) / float(scale)
                steps = np.stack([rescale(sums[:, c], float(r)) for c, r in enumerate(ratio)], axis=1)
            last = known[node.outputs[0]] = np.clip(steps + int(zero), -128, 127)
        elif node.op_type != "DequantizeLinear":
            results[node.outputs[0]] = _SUMS[node.op_type](node, operand)
    return last


def _nearest(values, scale, zero):
    return np.clip(np.rint(values / np.float32(scale)).astype(np.int64) + int(zero), -128, 127)


def evaluate_node(node, arrays):
    """One node by ONNX's reference evaluator, in float32."""
    proto = ir.serde.serialize_node(node)
    inputs = [onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in arrays.items()]
    output = onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([proto], "node", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, arrays)[0]


def _conv(node, operand):
    image, scale = operand(node.inputs[0])
    weight, scales = operand(node.inputs[1])
    bias, _ = operand(node.inputs[2])
    top, left, bottom, right = node.attributes["pads"].as_ints() if "pads" in node.attributes else (0, 0, 0, 0)
    down, across = node.attributes["strides"].as_ints() if "strides" in node.attributes else (1, 1)
    padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right))).astype(np.float64)
    areas = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::down, ::across]
    # Exact in float64: int8 products, fewer than 2**37 of them.
    if node.attributes.get_int("group", 1) == 1:
        sums = np.tensordot(areas, weight.astype(np.float64), axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    else:
        sums = np.einsum("nchwij,cij->nchw", areas, weight[:, 0].astype(np.float64), optimize=True)
    return sums.astype(np.int64) + bias.reshape(1, -1, 1, 1), scale * scales


def _gemm(node, operand):
    rows, scale = operand(node.inputs[0])
    weight, scales = operand(node.inputs[1])
    bias, _ = operand(node.inputs[2])
    return rows @ (weight.T if node.attributes.get_int("transB", 0) else weight) + bias, scale * scales


def _add(node, operand):
    (one, step), (other, step_other) = operand(node.inputs[0]), operand(node.inputs[1])
    unit = 2 * max(step, step_other) / 2**20
    return rescale(one, step / unit) + rescale(other, step_other / unit), unit


def _mean(node, operand):
    image, scale = operand(node.inputs[0])
    return image.sum(axis=(2, 3), keepdims=True), scale / (image.shape[2] * image.shape[3])


def _reshape(node, operand):
    value, scale = operand(node.inputs[0])
    return value.reshape(len(value), -1), scale


def _product(node, operand):
    (one, step), (other, step_other) = operand(node.inputs[0]), operand(node.inputs[1])
    return one * other, step * step_other


def _largest(node, operand):
    image, scale = operand(node.inputs[0])
    (high, wide), (down, across) = (node.attributes[name].as_ints() for name in ("kernel_shape", "strides"))
    assert not any(node.attributes.get_ints("pads", ()))
    return sliding_window_view(image, (high, wide), axis=(2, 3))[:, :, ::down, ::across].max(axis=(4, 5)), scale


def _function(node, operand):
    """A function of single values, by ONNX's own evaluator on what the integers stand for."""
    arrays = {}
    for value in node.inputs:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            integers, scale = operand(value)
            arrays[value.name] = integers.astype(np.float32) * np.float32(scale)
        else:
            arrays[value.name] = tensor.numpy()
    return evaluate_node(node, arrays), None


def _softmax(node, operand):
    """By logarithms of 12 bits and tables of 513 entries, with straight lines between them: its definition here."""
    rows, scale = operand(node.inputs[0])
    assert rows.ndim == 2
    points = np.arange(-32768, 32769, 128)
    exp = np.minimum(np.rint(np.exp((points - 32767) / 4096) * 32767), 32767).astype(np.int64)
    ends = max(rows.shape[1], 2)
    log = np.rint(np.log(1 + (points + 32768) * (ends - 1) / 65535) / np.log(ends) * 32767)
    log = np.minimum(log, 32767).astype(np.int64)
    one = 32767 * 128
    below = rescale(rows - rows.max(axis=1, keepdims=True), scale * 4096)
    sums = _interpolated(exp, below + 32767).sum(axis=1, keepdims=True)
    place = rescale(sums, 65535 / (ends - 1) / one) - round(65535 / (ends - 1)) - 32768
    logarithm = rescale(_interpolated(log, place), float(np.log(ends)) * 4096 / one)
    return _interpolated(exp, below - logarithm + 32767), 1 / one


def _interpolated(table, values):
    """TOSA's TABLE of 16 bits."""
    values = np.clip(values, -32768, 32767)
    index, rest = (values >> 7) + 256, values & 127
    return (table[index] << 7) + (table[index + 1] - table[index]) * rest


_SUMS = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": _add,
    "GlobalAveragePool": _mean,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "MatMul": _gemm,
    "Mul": _product,
    "MaxPool": _largest,
    "Softmax": _softmax,
    **dict.fromkeys(("Clip", "Div", "HardSigmoid", "Relu"), _function),
}
