"""From ONNX operators between ``DequantizeLinear`` and ``QuantizeLinear`` to TOSA's on integers.

A tensor of rank 4 has its channels last in the program; shapes, axes and paddings here are ONNX's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from aicc.runtime.errors import UnsupportedError
from aicc.targets.ethos_u.lowering.program import DType, Op, Program, ts

_LAST = (0, 2, 3, 1)  # channels last
_FIRST = (0, 3, 1, 2)
_ADD_BITS = 20  # of head room that sums of rescaled 8-bit values get, as in TensorFlow Lite


class Refused(Exception):
    """A node the program cannot have, with the reason."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An int8 tensor of the program.

    Attributes:
        name: In the program.
        shape: As ONNX has it.
        scale: Step between neighbouring integers.
        zero: The integer that means 0.
        values: Of a constant, None of an activation.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero: int
    values: NDArray[np.int8] | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in the program."""
        return stored(self.shape)


def stored(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with its channels last if it has rank 4."""
    return tuple(shape[axis] for axis in _LAST) if len(shape) == 4 else tuple(shape)


def array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """A constant's values, None of anything else."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


class Node:
    """One operator with its operands and its result as integers."""

    def __init__(self, node: ir.Node, program: Program, inputs: list[Tensor | None], output: Tensor) -> None:
        self.node, self.program, self.inputs, self.output = node, program, inputs, output
        self._parts = 0

    def part(self) -> str:
        """A name for an intermediate tensor."""
        self._parts += 1
        return f"{self.output.name}/{self._parts}"

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute of several integers."""
        attribute = self.node.attributes.get(name)
        return tuple(attribute.as_ints()) if attribute is not None else tuple(default)

    def refuse_implicit_areas(self) -> None:
        """Refuse padding that follows from sizes, and areas cut off by the edge."""
        attributes = self.node.attributes
        if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or attributes.get_int("ceil_mode", 0):
            raise Refused("auto_pad and ceil_mode have to be left out")

    def weight(self, index: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Symmetric int8 values and their scales, one or one a channel."""
        dequantize = self.node.inputs[index].producer()
        values, scales, zeros = (array(value) for value in dequantize.inputs)
        if values is None or values.dtype != np.int8 or np.any(zeros):
            raise Refused("its weights are not symmetric int8 constants")
        return values, np.atleast_1d(scales).astype(np.float64)

    def bias(self, index: int, channels: int) -> NDArray[np.int32]:
        """What is added to the sums of products, one a channel."""
        if len(self.node.inputs) <= index or self.node.inputs[index] is None:
            return np.zeros(channels, np.int32)
        values = array(self.node.inputs[index].producer().inputs[0])
        if values is None or values.dtype != np.int32:
            raise Refused("its bias is not an int32 constant")
        return values.reshape(-1)

    def finish(
        self, sums: str, scales: NDArray[np.float64] | Sequence[float], zero: int = 0, dtype: str = "int32"
    ) -> None:
        """Bring a result to the output's scale; ``scales`` are what its integers stand for."""
        factors = [float(scale) / self.output.scale for scale in scales]
        if len(set(factors)) == 1:
            factors = factors[:1]
        self.program.rescale(
            self.output.name, sums, self.output.stored, factors, (zero, self.output.zero), (dtype, "int8")
        )

    def convolve(
        self,
        image: str,
        size: tuple[int, int, int, int],
        weight: NDArray[np.int8],
        bias: NDArray[np.int32],
        depthwise: bool,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
    ) -> str:
        """Sums of products, int32.

        Args:
            image: The input, channels last.
            size: Its shape ``[1, H, W, C]``.
            weight: ``[O, H, W, C]``, or ``[H, W, C, M]`` if depthwise.
            bias: ``[O]``.
            depthwise: Whether each channel is convolved by itself.
            strides: Down and to the right.
            pads: Top, left, bottom, right.
            dilations: As strides.
        """
        kernel = weight.shape[:2] if depthwise else weight.shape[1:3]
        lows, highs, sizes = list(pads[:2]), list(pads[2:]), list(size[1:3])
        for axis in range(2):  # TOSA has no rows that a stride leaves over
            spare = (sizes[axis] - 1 + lows[axis] + highs[axis] - (kernel[axis] - 1) * dilations[axis]) % strides[axis]
            sizes[axis] -= max(0, spare - highs[axis])
            highs[axis] = max(0, highs[axis] - spare)
        if sizes != list(size[1:3]):
            cut = [size[0], *sizes, size[3]]
            image = self.program.add(
                self.part(), Op.SLICE, [image, self.program.sizes([0] * 4), self.program.sizes(cut)], cut, "int8"
            )
        outer = [
            (sizes[a] - 1 + lows[a] + highs[a] - (kernel[a] - 1) * dilations[a]) // strides[a] + 1 for a in range(2)
        ]
        zeros = [self.program.constant(np.array([zero], np.int8)) for zero in (self.inputs[0].zero, 0)]
        operands = [image, self.program.constant(weight), self.program.constant(bias), *zeros]
        padding = [lows[0], highs[0], lows[1], highs[1]]
        return self.program.add(
            self.part(),
            Op.DEPTHWISE_CONV2D if depthwise else Op.CONV2D,
            operands,
            [size[0], *outer, len(bias)],
            "int32",
            *(padding, list(strides), list(dilations), False, DType.INT32),
        )

    def reshaped(self, tensor: Tensor, shape: Sequence[int], order: Sequence[int] | None = None) -> str:
        """A tensor in another stored shape, after its stored axes were put in another order."""
        name, sizes = tensor.name, tensor.stored
        if order is not None and _moves(sizes, order):
            sizes = tuple(sizes[axis] for axis in order)
            name = self.program.add(self.part(), Op.TRANSPOSE, [name], sizes, "int8", list(order))
        if tuple(shape) == sizes:
            return name
        return self.program.add(self.part(), Op.RESHAPE, [name, self.program.sizes(shape)], shape, "int8")

    def operand(self, index: int) -> Tensor:
        """An input broadcast to the output's rank."""
        tensor = self.inputs[index]
        shape = (1,) * (len(self.output.shape) - len(tensor.shape)) + tensor.shape
        if tensor.values is not None:
            values = tensor.values.reshape(shape)
            values = values.transpose(_LAST) if values.ndim == 4 else values
            return Tensor(self.program.constant(np.ascontiguousarray(values)), shape, tensor.scale, tensor.zero)
        if shape == tensor.shape:
            return tensor
        return Tensor(self.reshaped(tensor, stored(shape)), shape, tensor.scale, tensor.zero)


def _moves(sizes: Sequence[int], order: Sequence[int]) -> bool:
    """Whether reordering axes moves anything but axes of size 1."""
    kept = [axis for axis in order if sizes[axis] > 1]
    return kept != sorted(kept)


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
    order = _FIRST if len(rows.shape) == 4 else None
    shape = (1, prod(rows.shape[:-1]), 1, rows.shape[-1])
    kernel = np.ascontiguousarray(weight.reshape(len(weight), 1, 1, -1))
    sums = n.convolve(n.reshaped(rows, shape, order), shape, kernel, n.bias(2, len(weight)), False)
    if len(n.output.shape) == 4:
        raise Refused("products of tensors of rank 4 are not taken")
    sums = n.program.add(n.part(), Op.RESHAPE, [sums, n.program.sizes(n.output.shape)], n.output.shape, "int32")
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
    if len(image.shape) != 4 or max(kernel) > 64:
        raise Refused("only means over areas of up to 64 by 64 are taken")
    channels = image.shape[1]
    ones = np.ones((*kernel, channels, 1), np.int8)
    sums = n.convolve(image.name, image.stored, ones, np.zeros(channels, np.int32), True, strides=strides)
    n.finish(sums, [image.scale / prod(kernel)])


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


def _reshape(n: Node) -> None:
    value = n.inputs[0]
    order = _FIRST if len(value.shape) == 4 else None
    if len(n.output.shape) == 4 and len(value.shape) != 4:
        first = Tensor(n.reshaped(value, n.output.shape), n.output.shape, value.scale, value.zero)
        result = n.program.add(n.part(), Op.TRANSPOSE, [first.name], n.output.stored, "int8", list(_LAST))
    elif len(n.output.shape) == 4:
        raise Refused("it changes the sizes of an image")
    else:
        result = n.reshaped(value, n.output.shape, order)
    n.finish(result, [value.scale], value.zero, "int8")


def _transpose(n: Node) -> None:
    value = n.inputs[0]
    order = n.ints("perm", range(len(value.shape))[::-1])
    if len(order) == 4:  # of the stored axes: undo channels last, reorder, and put them last again
        order = tuple(_LAST.index(order[axis]) for axis in _LAST)
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
    place = _LAST.index(axis) if len(n.output.shape) == 4 else axis
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
    "Conv": _conv, "Gemm": _gemm, "MatMul": _gemm, "Add": _sum, "Sub": _sum, "Mul": _product,
    "GlobalAveragePool": _mean, "AveragePool": _mean, "MaxPool": _maximum, "Concat": _concat, "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(_TABLES, _table),
}  # fmt: skip


def unsupported(node: ir.Node, target: str, reason: str) -> UnsupportedError:
    """The error that names a node and says what to do."""
    return UnsupportedError(
        f"{target} cannot run {node.op_type} ({node.name or node.outputs[0].name}): {reason}.",
        "Cut the graph there and leave the rest to the host's program, or compile for another target.",
    )
