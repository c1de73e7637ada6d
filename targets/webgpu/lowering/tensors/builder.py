"""Turns tensors that are still expressions into kernels, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from aicc.targets.webgpu.lowering.tensors.values import (
    SCALARS,
    Buffer,
    Dispatch,
    Kernel,
    Lazy,
    Number,
    Place,
    Refused,
    Root,
    Shape,
    Stored,
    Value,
    reads_of,
)

_MOST_READ = 7  # buffers, beside the one that is written: every device binds eight


class Pointwise(Root):
    """The root of what needs none: a thread for each element."""

    def write(self, kernel: Kernel, store: Callable[[Place], None]) -> None:
        """One element."""
        store(Place(kernel, self.shape, number=kernel.threads(self.size)))


class Builder:
    """The kernels of a graph so far."""

    def __init__(self) -> None:
        self.dispatches: list[Dispatch] = []
        self.label = ""
        self._stored: dict[Value, Stored] = {}

    def stored(self, value: Value) -> Stored:
        """A tensor in memory; it is computed now if it is not there."""
        if isinstance(value, Stored):
            return value
        if value not in self._stored:
            target = Buffer(4 * max(value.size, 1), value.scalar)
            self.write(value, target)
            self._stored[value] = whole(target, value.shape, value.dtype)
        return self._stored[value]

    def write(self, value: Value, target: Buffer, where: Callable[[Place], str] = Place.number) -> None:
        """Compute a tensor into memory.

        Args:
            value: The tensor.
            target: Where to.
            where: The number of the element of ``target`` that each place is.
        """
        if not value.size:
            return
        root = value.root or Pointwise(value.shape, value.dtype, value)
        kernel = Kernel(target)

        def store(place: Place) -> None:
            element = value.at(kernel, place)
            kernel.line(f"result[{where(place)}] = {element};")

        root.write(kernel, store)
        self.dispatches.append(kernel.dispatch(root.label or self.label))

    def fetched(self, value: Value) -> Value:
        """A tensor whose elements may be read many times."""
        return value if value.plain and value.root is None else self.stored(value)

    def computed(self, value: Value) -> Value:
        """A tensor whose elements any kernel may compute, once or twice."""
        return value if value.root is None else self.stored(value)

    def constant(self, array: np.ndarray, dtype: ir.DataType | None = None) -> Value:
        """A tensor of values known now."""
        dtype = dtype or ir.DataType.from_numpy(array.dtype)
        scalar = scalar_of(dtype)
        if array.size and (array == array.flat[0]).all() and np.isfinite(array.flat[0].astype(np.float64)):
            return Number(array.shape, dtype, value=array.flat[0], plain=True)
        kinds = {"f32": np.float32, "i32": np.int64, "u32": np.uint32}  # bounds of slices take 64 bits
        buffer = Buffer(4 * max(array.size, 1), scalar, np.ascontiguousarray(array, kinds[scalar]))
        return whole(buffer, array.shape, dtype)

    def map(self, shape: Shape, dtype: ir.DataType, function: Callable[[Kernel, Place], str], *reads: Value) -> Lazy:
        """A tensor whose elements are fetched from others that :meth:`fetched` or :meth:`computed` gave."""
        return Lazy(shape, dtype, function=function, reads=reads_of(reads), plain=all(value.plain for value in reads))

    def elementwise(
        self, dtype: ir.DataType, expression: Callable[..., str], *inputs: Value, plain: bool = False
    ) -> Value:
        """A function of the elements of several tensors at a place, which are broadcast to one shape.

        Args:
            dtype: Of the result.
            expression: WGSL of it from names of the elements.
            inputs: The tensors.
            plain: See :class:`aicc.targets.webgpu.lowering.tensors.values.Value`.
        """
        shape = np.broadcast_shapes(*(value.shape for value in inputs))
        values = [v if v.shape == shape or isinstance(v, Number) else self.fetched(v) for v in inputs]
        roots = list(dict.fromkeys(v.root for v in values if v.root is not None))
        for root in roots[:-1]:  # one kernel computes one of them
            values = [self.stored(v) if v.root is root else v for v in values]
        for value in sorted(values, key=lambda v: -len(v.reads)):
            if len(reads_of(values)) > _MOST_READ:
                values = [self.stored(v) if v is value else v for v in values]

        def at(kernel: Kernel, place: Place) -> str:
            return expression(
                *(v.at(kernel, place if isinstance(v, Number) else place.within(v.shape)) for v in values)
            )

        plain = plain and all(value.plain for value in values)
        return Lazy(shape, dtype, function=at, reads=reads_of(values), root=roots[-1] if roots else None, plain=plain)


def whole(buffer: Buffer, shape: Shape, dtype: ir.DataType) -> Stored:
    """All of a buffer as a tensor."""
    return Stored(shape, dtype, buffer=buffer, reads=frozenset([buffer]), plain=True)


def scalar_of(dtype: ir.DataType | None) -> str:
    """A type in a shader.

    Raises:
        Refused: There is none.
    """
    if dtype not in SCALARS:
        raise Refused(f"it has values of type {dtype.name.lower() if dtype else 'unknown'}, which shaders do not have")
    return SCALARS[dtype]


def reshaped(value: Stored, shape: Sequence[int]) -> Stored:
    """The same memory in another shape."""
    assert prod(shape) == value.size
    return Stored(tuple(shape), value.dtype, buffer=value.buffer, reads=value.reads, plain=True)
