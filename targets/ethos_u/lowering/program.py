"""A TOSA 1.0 program while it is written, and the arithmetic of its RESCALE.

https://www.mlplatform.org/tosa/tosa_spec_1_0_0.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import tosa_serializer as ts
from numpy.typing import NDArray

Op, DType = ts.Op, ts.DType
_VERSION = (1, 0, 0, False)  # not the draft of 1.1 that the serializer writes by itself and Vela refuses
_TYPES = {"int8": DType.INT8, "int16": DType.INT16, "int32": DType.INT32}


def fixed_point(scale: float) -> tuple[int, int]:
    """``multiplier, shift`` with ``scale = multiplier / 2**shift``, as RESCALE takes them.

    Args:
        scale: Below ``2**29``. One below ``2**-31``, of a channel without weights, has fewer digits or none.
    """
    if scale < 2**-31:
        return round(math.ldexp(scale, 62)), 62
    fraction, exponent = math.frexp(scale)
    multiplier, shift = round(fraction * (1 << 31)), 31 - exponent
    if multiplier == 1 << 31:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift < 2:
        raise ValueError(f"a factor of {scale:g} between two scales is outside what 32-bit fixed point can say")
    return multiplier, shift


class Program:
    """Operators and tensors in order; every method gives the name of the tensor it adds."""

    def __init__(self) -> None:
        self._serializer = ts.TosaSerializer("", ts.ConstMode.EMBED, *_VERSION)
        self._region = self._serializer.currRegion
        self._block = self._region.basicBlocks[0]
        self._named = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def name(self, text: str) -> str:
        """A name no other tensor has, with the model's own in it for people: Vela writes it into tables as it is."""
        self._named += 1
        return f"{self._named}:{re.sub('[^A-Za-z0-9_./:-]', '_', text)}"

    def input(self, name: str, shape: Sequence[int]) -> str:
        """An int8 input."""
        self._block.addTensor(name, list(shape), DType.INT8)
        self._block.addInput(name)
        return name

    def output(self, name: str) -> None:
        """Make a tensor an output."""
        self._block.addOutput(name)

    def constant(self, values: NDArray[np.generic]) -> str:
        """A constant; equal ones are there once."""
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._constants:
            kind = _TYPES[values.dtype.name]
            self._constants[key] = self._region.addConst(list(values.shape), kind, values).name
        return self._constants[key]

    def sizes(self, sizes: Sequence[int]) -> str:
        """A constant shape."""
        key = ("shape", tuple(sizes), b"")
        if key not in self._constants:
            self._constants[key] = self._region.addConst([len(sizes)], DType.SHAPE, list(sizes)).name
        return self._constants[key]

    def add(
        self, name: str, op: Op, inputs: Sequence[str], shape: Sequence[int], dtype: str, *attributes: object
    ) -> str:
        """An operator and its result."""
        attribute = ts.TosaSerializerAttribute()
        attribute.setAttribute(op, *attributes)
        self._block.addTensor(name, list(shape), _TYPES[dtype])
        self._block.addOperator(op, list(inputs), [name], attribute)
        return name

    def reshape(self, name: str, value: str, shape: Sequence[int], dtype: str = "int8") -> str:
        """A tensor in another shape."""
        return self.add(name, Op.RESHAPE, [value, self.sizes(shape)], shape, dtype)

    def rescale(
        self,
        name: str,
        value: str,
        shape: Sequence[int],
        scales: Sequence[float],
        zeros: tuple[int, int],
        dtypes: tuple[str, str],
    ) -> str:
        """``round((value - zeros[0]) * scale) + zeros[1]``, saturated, halves rounded up.

        Args:
            name: Of the result.
            value: What is rescaled.
            shape: Of both.
            scales: One, or one for each entry of the last axis.
            zeros: Zero points of the value and of the result.
            dtypes: Their types.
        """
        multipliers, shifts = zip(*(fixed_point(scale) for scale in scales), strict=True)
        operands = [
            self.constant(np.array(multipliers, np.int32)),
            self.constant(np.array(shifts, np.int8)),
            *(self.constant(np.array([zero], dtype)) for zero, dtype in zip(zeros, dtypes, strict=True)),
        ]
        attributes = (True, ts.RoundingMode.SINGLE_ROUND, len(scales) > 1, False, False)
        return self.add(name, Op.RESCALE, [value, *operands], shape, dtypes[1], *attributes)

    def serialize(self) -> bytes:
        """The flatbuffer."""
        return bytes(self._serializer.serialize())
