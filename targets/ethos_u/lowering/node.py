"""One operator between ``DequantizeLinear`` and ``QuantizeLinear``, with its operands as integers of the program.

A tensor of rank 4 has its channels last in the program; shapes, axes and paddings here are ONNX's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.ethos_u.lowering.program import DType, Op, Program

LAST = (0, 2, 3, 1)  # channels last
FIRST = (0, 3, 1, 2)


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
    return tuple(shape[axis] for axis in LAST) if len(shape) == 4 else tuple(shape)


def tensor(value: ir.Value, target: Target, program: Program, scale: float, zero: int) -> Tensor:
    """The tensor of the program that holds a value of the graph.

    Raises:
        UnsupportedError: It is a batch of images.
    """
    shape = tuple(int(size) for size in value.shape)
    if len(shape) == 4 and shape[0] != 1:
        raise UnsupportedError(
            f"{target.name} runs one image at a time, and {value.name} has {shape[0]}.", "Export it with a batch of 1."
        )
    return Tensor(program.name(str(value.name)), shape, scale, zero)


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

    def weight_axis(self, index: int) -> int:
        """The axis that a weight's scales belong to."""
        return self.node.inputs[index].producer().attributes.get_int("axis", 1)

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
        if order is not None and moves(sizes, order):
            sizes = tuple(sizes[axis] for axis in order)
            name = self.program.add(self.part(), Op.TRANSPOSE, [name], sizes, "int8", list(order))
        if tuple(shape) == sizes:
            return name
        return self.program.reshape(self.part(), name, shape)

    def operand(self, index: int) -> Tensor:
        """An input broadcast to the output's rank."""
        tensor = self.inputs[index]
        shape = (1,) * (len(self.output.shape) - len(tensor.shape)) + tensor.shape
        if tensor.values is not None:
            values = tensor.values.reshape(shape)
            values = values.transpose(LAST) if values.ndim == 4 else values
            return Tensor(self.program.constant(np.ascontiguousarray(values)), shape, tensor.scale, tensor.zero)
        if shape == tensor.shape:
            return tensor
        return Tensor(self.reshaped(tensor, stored(shape)), shape, tensor.scale, tensor.zero)


def moves(sizes: Sequence[int], order: Sequence[int]) -> bool:
    """Whether reordering axes moves anything but axes of size 1."""
    kept = [axis for axis in order if sizes[axis] > 1]
    return kept != sorted(kept)


def unsupported(node: ir.Node, target: str, reason: str) -> UnsupportedError:
    """The error that names a node and says what to do."""
    return UnsupportedError(
        f"{target} cannot run {node.op_type} ({node.name or node.outputs[0].name}): {reason}.",
        "Cut the graph there and leave the rest to the host's program, or compile for another target.",
    )
