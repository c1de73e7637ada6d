"""Biases that make up for what rounding does to weights.

A sum of products with rounded weights is off by ``(W_q - W) x``, on average by ``(W_q - W) E[x]``, which is not zero
where ``x`` is not, as behind every ReLU. Taken off the bias it costs the chip nothing: bias correction of Nagel et
al., 2019 (https://arxiv.org/abs/1906.04721), section 4.2, with ``E[x]`` measured on the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from aicc.runtime.provider import Array

Floats = NDArray[np.float64]


def correct_biases(source: Path, quantised: ir.Model, samples: Sequence[Mapping[str, Array]]) -> None:
    """Correct the biases of convolutions and products with a constant, in place.

    Args:
        source: The graph in floats that was quantised.
        quantised: Its QDQ form: nodes have the same names, biases are int32.
        samples: What it was calibrated with.
    """
    model = ir.load(source)
    named = {node.name: node for node in quantised.graph if node.name}
    pairs = [(node, named[node.name]) for node in model.graph if _has_bias(node) and node.name in named]
    pairs = [(node, twin) for node, twin in pairs if _is_quantised(twin)]
    means = _means(model, [node for node, _ in pairs], source.with_name("taps.onnx"), samples)
    for node, twin in pairs:
        weight, bias = (value.producer() for value in twin.inputs[1:3])
        lost = _rows(node, _array(node.inputs[1]) - _dequantised(weight))
        groups = node.attributes.get_int("group", 1)  # of outputs, each of which reads one group of inputs
        shift = lost.reshape(groups, -1, lost.shape[1]) @ means[node].reshape(groups, -1, 1)
        integers, steps = (_array(value) for value in bias.inputs[:2])
        corrected = np.clip(integers + np.rint(shift.reshape(-1) / steps), -(1 << 31), (1 << 31) - 1)
        bias.inputs[0].const_value = ir.tensor(corrected.astype(np.int32), name=bias.inputs[0].name)


def _has_bias(node: ir.Node) -> bool:
    """Whether a node adds a constant to its input's products with one, in a form that is looked at here."""
    constants = [ir.convenience.get_const_tensor(value) for value in node.inputs[1:3] if value is not None]
    if node.op_type not in ("Conv", "Gemm") or len(constants) < 2 or None in constants:
        return False
    attributes, (weight, bias) = node.attributes, constants
    outputs = weight.shape[1 if node.op_type == "Gemm" and not attributes.get_int("transB", 0) else 0]
    if bias.size != outputs:  # one for all of them, for instance
        return False
    if node.op_type == "Gemm":
        plain = {attributes.get_float(name, 1.0) for name in ("alpha", "beta")} == {1.0}
        return plain and not attributes.get_int("transA", 0)
    return attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _is_quantised(node: ir.Node) -> bool:
    """Whether both its weights and its bias are integers."""
    producers = [value.producer() if value is not None else None for value in node.inputs[1:3]]
    if any(each is None or each.op_type != "DequantizeLinear" for each in producers):
        return False
    return producers[1].inputs[0].dtype == ir.DataType.INT32


def _means(
    model: ir.Model, nodes: list[ir.Node], path: Path, samples: Sequence[Mapping[str, Array]]
) -> dict[ir.Node, Floats]:
    """What each node multiplies every column of its weights with, on average: ``[features of all groups]``."""
    taps = dict.fromkeys(node.inputs[0] for node in nodes)
    inputs, outputs = set(model.graph.inputs), set(model.graph.outputs)
    model.graph.outputs.extend(value for value in taps if value not in inputs | outputs)
    ir.save(model, path, external_data=f"{path.name}.data")
    names = [str(value.name) for value in taps if value not in inputs]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sums: dict[ir.Node, Floats] = {}
    for sample in samples:
        found = dict(sample)
        if names:  # an empty list would ask for all there is
            found |= zip(names, session.run(names, found), strict=True)
        for node in nodes:
            mean = _mean_patch(node, found[str(node.inputs[0].name)])
            sums[node] = sums[node] + mean if node in sums else mean
    return {node: total / len(samples) for node, total in sums.items()}


def _mean_patch(node: ir.Node, x: Array) -> Floats:
    """The mean of what the weights are laid on, ``[channels * kernel]``, or of rows, ``[columns]``."""
    if node.op_type == "Gemm":
        return x.mean(axis=0, dtype=np.float64)
    kernel = node.inputs[1].shape[2:]
    rank = len(kernel)
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    strides, gaps = (node.attributes.get_ints(name, (1,) * rank) for name in ("strides", "dilations"))
    x = np.pad(x, ((0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)))
    ends = [size - (side - 1) * gap for size, side, gap in zip(x.shape[2:], kernel, gaps, strict=True)]
    means = np.empty((x.shape[1], *kernel))
    for place in product(*map(range, kernel)):
        cut = [
            slice(at * gap, at * gap + end, stride)
            for at, gap, end, stride in zip(place, gaps, ends, strides, strict=True)
        ]
        means[:, *place] = x[:, :, *cut].mean(axis=(0, *range(2, 2 + rank)), dtype=np.float64)
    return means.reshape(-1)


def _rows(node: ir.Node, weight: Floats) -> Floats:
    """Weights ``[outputs, features]``, of a group's features where there are groups."""
    if node.op_type == "Gemm":
        return weight if node.attributes.get_int("transB", 0) else weight.T
    return weight.reshape(len(weight), -1)


def _dequantised(node: ir.Node) -> Floats:
    """What a ``DequantizeLinear`` of constants gives, with a scale for each channel or one for all."""
    values, scales = (_array(value) for value in node.inputs[:2])
    zeros = _array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    shape = [-1 if axis == node.attributes.get_int("axis", 1) else 1 for axis in range(values.ndim)]
    scales, zeros = (each.reshape(shape) if each.size > 1 else each for each in (scales, zeros))
    return (values - zeros) * scales


def _array(value: ir.Value) -> Floats:
    return ir.convenience.get_const_tensor(value).numpy().astype(np.float64)
