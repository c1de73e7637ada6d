"""A calibrated graph in exact integers, by nothing but numpy and Python: what a program for integers has to compute.

Sums are those of int8 products; a sum becomes an int8 value through a factor of 31 bits, rounded
half up once, as TOSA's RESCALE is defined. Written from the definitions, not from the lowering.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

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
                ratio = np.broadcast_to(np.atleast_1d(unit), (sums.shape[1],)) / float(scale)
                steps = np.stack([rescale(sums[:, c], float(r)) for c, r in enumerate(ratio)], axis=1)
            last = known[node.outputs[0]] = np.clip(steps + int(zero), -128, 127)
        elif node.op_type != "DequantizeLinear":
            results[node.outputs[0]] = _SUMS[node.op_type](node, operand)
    return last


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


_SUMS = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Add": _add,
    "GlobalAveragePool": _mean,
    "Reshape": _reshape,
    "Flatten": _reshape,
}
