"""Tensors while a graph is lowered: stored on the device, or still an expression that some kernel will compute.

An operator that gives each element on its own stays an expression (:class:`Lazy`) until something needs its value in
memory, so chains of them become one kernel. A convolution, a product or a reduction is a :class:`Root`: what follows
it element by element is computed where it stores its results. Every element on the device takes four bytes; only
constants may be narrower (:data:`NARROW`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from aicc.targets.webgpu.lowering.text import template

GROUP = 64  # threads of a workgroup, which every device has
MOST_GROUPS = 65535  # along one axis of a dispatch
Shape = tuple[int, ...]

# What an element is in a shader. Integers of 64 bits are held in 32; nothing that could leave them is computed.
SCALARS = {
    ir.DataType.FLOAT: "f32", ir.DataType.FLOAT16: "f32", ir.DataType.BFLOAT16: "f32",
    ir.DataType.INT64: "i32", ir.DataType.INT32: "i32", ir.DataType.INT16: "i32", ir.DataType.INT8: "i32",
    ir.DataType.UINT16: "i32", ir.DataType.UINT8: "i32", ir.DataType.INT4: "i32", ir.DataType.UINT4: "i32",
    ir.DataType.UINT32: "u32", ir.DataType.BOOL: "u32",
}  # fmt: skip

# Constants that stay as they are stored: how element {i} is read from an array {b} of u32.
NARROW = {
    ir.DataType.FLOAT16: "unpack2x16float({b}[{i} >> 1u])[{i} & 1]",
    ir.DataType.BFLOAT16: "bitcast<f32>(extractBits({b}[{i} >> 1u], u32({i} & 1) * 16u, 16u) << 16u)",
    ir.DataType.INT8: "extractBits(bitcast<i32>({b}[{i} >> 2u]), u32({i} & 3) * 8u, 8u)",
    ir.DataType.UINT8: "i32(extractBits({b}[{i} >> 2u], u32({i} & 3) * 8u, 8u))",
    ir.DataType.INT4: "extractBits(bitcast<i32>({b}[{i} >> 3u]), u32({i} & 7) * 4u, 4u)",
    ir.DataType.UINT4: "i32(extractBits({b}[{i} >> 3u], u32({i} & 7) * 4u, 4u))",
}


class Refused(Exception):
    """A node that has no kernel; the text says why."""


@dataclass(eq=False)
class Buffer:
    """Memory of a tensor on the device.

    Attributes:
        size: Bytes, a multiple of four.
        kind: Its element in a shader.
        constant: What is stored in it, for weights; arrays of int64 as int32.
    """

    size: int
    kind: str
    constant: ir.TensorProtocol | np.ndarray | None = None


@dataclass(eq=False)
class Dispatch:
    """One run of a kernel: WGSL whose bindings are these buffers in order, the last one written."""

    label: str
    wgsl: str
    buffers: list[Buffer]
    groups: tuple[int, int]


class Kernel:
    """The text of one kernel while it is written, and the buffers it names."""

    def __init__(self, target: Buffer) -> None:
        self.target = target
        self.given: dict[Root, str] = {}
        self.groups = 0
        self._buffers: list[Buffer] = []
        self._lines: list[str] = []
        self._scopes: list[dict[Any, Any]] = [{}]
        self._functions: dict[str, None] = {}
        self._names = 0

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for a key where its names can still be seen; else it is made."""
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        made = make()
        self._scopes[-1][key] = made
        return made

    def line(self, text: str) -> None:
        """Append a line."""
        self._lines.append("  " * len(self._scopes) + text)

    def name(self) -> str:
        """A new name."""
        self._names += 1
        return f"v{self._names}"

    def let(self, expression: str) -> str:
        """A name for the value of an expression; names and plain numbers are their own."""
        if expression.isalnum() and not expression.endswith("u"):
            return expression

        def make() -> str:
            name = self.name()
            self.line(f"let {name} = {expression};")
            return name

        return self.once(expression, make)

    def var(self, expression: str) -> str:
        """A name for something that changes."""
        name = self.name()
        self.line(f"var {name} = {expression};")
        return name

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines between braces."""
        self.line(head + " {")
        self._scopes.append({})
        yield
        self._scopes.pop()
        self.line("}")

    @contextmanager
    def loop(self, name: str, stop: int, start: str = "0", step: int = 1) -> Iterator[str]:
        """A loop over whole numbers; of one round there is none. Gives the name of the number."""
        if stop <= 1 and start == "0":
            yield "0"
            return
        with self.block(f"for (var {name}: i32 = {start}; {name} < {stop}; {name} += {step})"):
            yield name

    def function(self, text: str) -> None:
        """Have a function defined."""
        self._functions[text] = None

    def bind(self, buffer: Buffer) -> str:
        """A buffer's name."""
        if buffer not in self._buffers:
            self._buffers.append(buffer)
        return f"b{self._buffers.index(buffer)}"

    def threads(self, count: int) -> str:
        """The number of this thread among ``count``; the others are ended."""
        self.groups = -(-count // GROUP)
        self.line(f"let thread = i32((group.y * groups.x + group.x) * {GROUP}u + lane);")
        self.line(f"if (thread >= {count}) {{ return; }}")
        return "thread"

    def rows(self, count: int) -> str:
        """The number of this workgroup among ``count``; the others are ended."""
        self.groups = count
        self.line("let row = i32(group.y * groups.x + group.x);")
        self.line(f"if (row >= {count}) {{ return; }}")
        return "row"

    def dispatch(self, label: str) -> Dispatch:
        """The finished kernel and what it runs on."""
        across = min(self.groups, MOST_GROUPS)
        declared = [
            f"@group(0) @binding({number}) var<storage, read> b{number}: array<{buffer.kind}>;"
            for number, buffer in enumerate(self._buffers)
        ]
        number = len(self._buffers)
        declared.append(f"@group(0) @binding({number}) var<storage, read_write> result: array<{self.target.kind}>;")
        head = (
            f"@compute @workgroup_size({GROUP})\n"
            "fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,\n"
            "        @builtin(local_invocation_index) lane: u32) {"
        )
        body = "\n".join([head, *self._lines, "}", ""])
        named = [template("error_function")] if "error_function(" in body else []
        text = "\n".join([*declared, *named, *self._functions, body])
        return Dispatch(label, text, [*self._buffers, self.target], (across, -(-self.groups // max(across, 1))))


class Place:
    """Where in a tensor of a shape: coordinates and the number in row-major order, each from the other when asked."""

    def __init__(
        self, kernel: Kernel, shape: Shape, coords: Sequence[str] | None = None, number: str | None = None
    ) -> None:
        self.kernel, self.shape = kernel, shape
        self._coords, self._number = coords, number

    def coords(self) -> Sequence[str]:
        """One name or number an axis."""
        return self._coords if self._coords is not None else self.kernel.once((self, "coords"), self._divided)

    def number(self) -> str:
        """The element's number in row-major order."""
        return self._number if self._number is not None else self.kernel.once((self, "number"), self._counted)

    def _divided(self) -> list[str]:
        rest, found = self.number(), []
        for axis in reversed(range(len(self.shape))):
            size = self.shape[axis]
            outer = prod(self.shape[:axis])
            if size == 1:
                found.append("0")
                continue
            found.append(rest if outer == 1 else self.kernel.let(f"{rest} % {size}"))
            rest = "0" if outer == 1 else self.kernel.let(f"{rest} / {size}")
        return found[::-1]

    def _counted(self) -> str:
        terms, stride = [], 1
        for coord, size in zip(reversed(self.coords()), reversed(self.shape), strict=True):
            if coord != "0":
                terms.append(coord if stride == 1 else f"{coord} * {stride}")
            stride *= size
        return self.kernel.let(" + ".join(reversed(terms)) or "0")

    def within(self, shape: Shape) -> Place:
        """The same place of a tensor that is broadcast to this one's shape."""
        if shape == self.shape:
            return self
        coords = self.coords()[len(self.shape) - len(shape) :]
        return Place(self.kernel, shape, ["0" if n == 1 else c for c, n in zip(coords, shape, strict=True)])


@dataclass(eq=False)
class Value(ABC):
    """A tensor.

    Attributes:
        shape: Its sizes.
        dtype: As ONNX sees it.
        reads: The buffers an element of it is computed from.
        root: What has to compute it, if that is not free.
        plain: Whether an element is only fetched, from one place or by little arithmetic, so that
            doing so again is no waste.
    """

    shape: Shape
    dtype: ir.DataType
    reads: frozenset[Buffer] = field(default=frozenset(), kw_only=True)
    root: Root | None = field(default=None, kw_only=True)
    plain: bool = field(default=False, kw_only=True)

    @property
    def scalar(self) -> str:
        """An element's type in a shader."""
        return SCALARS[self.dtype]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @abstractmethod
    def at(self, kernel: Kernel, place: Place) -> str:
        """A name for the element at a place."""


@dataclass(eq=False)
class Stored(Value):
    """A tensor in memory, row-major."""

    buffer: Buffer = field(kw_only=True)

    def at(self, kernel: Kernel, place: Place) -> str:
        """Read it."""
        constant = self.buffer.constant
        if isinstance(constant, np.ndarray) and constant.dtype == np.int64:
            refuse_long(constant)
        name, number = kernel.bind(self.buffer), place.number()
        narrow = isinstance(constant, ir.TensorProtocol) and NARROW.get(self.dtype)
        return kernel.let(narrow.format(b=name, i=number) if narrow else f"{name}[{number}]")


@dataclass(eq=False)
class Number(Value):
    """One constant value, part of the kernel's text, broadcast to a shape."""

    value: Any = field(kw_only=True)

    def at(self, kernel: Kernel, place: Place) -> str:
        """Write it."""
        return literal(self.value, self.scalar)


@dataclass(eq=False)
class Lazy(Value):
    """A tensor that is a function of a place."""

    function: Callable[[Kernel, Place], str] = field(kw_only=True)

    def at(self, kernel: Kernel, place: Place) -> str:
        """Compute it, once at each place."""
        return kernel.once((self, place), lambda: kernel.let(self.function(kernel, place)))


class Root(Value):
    """A tensor that only a kernel of its own computes; once it has, an element is a name in that kernel."""

    def __init__(self, shape: Shape, dtype: ir.DataType, *reads: Value) -> None:
        super().__init__(shape, dtype, reads=reads_of(reads))
        self.root = self
        self.label = ""  # of the node it comes from

    def at(self, kernel: Kernel, place: Place) -> str:
        """What the kernel has computed for the place it is about to store."""
        return kernel.given[self]

    @abstractmethod
    def write(self, kernel: Kernel, store: Store) -> None:
        """Write a kernel that computes each element and stores it, having set ``kernel.given``."""


Store = Callable[[Place], None]


def reads_of(values: Sequence[Value]) -> frozenset[Buffer]:
    """The buffers that some tensors are computed from."""
    return frozenset().union(*(value.reads for value in values))


def literal(value: Any, scalar: str) -> str:
    """A finite number as WGSL.

    Raises:
        Refused: It is an integer of more than 32 bits.
    """
    if scalar == "f32":
        text = repr(float(np.float32(value)))
        return f"({text}f)" if text.startswith("-") else f"{text}f"
    refuse_long(np.asarray(value))
    return f"{scalar}({int(value)})"


def refuse_long(array: np.ndarray) -> None:
    """Refuse integers that the device has no room for.

    Raises:
        Refused: There is one.
    """
    if array.size and array.dtype == np.int64 and not -(2**31) < array.min() <= array.max() < 2**31:
        raise Refused("a constant of it is an integer of more than 32 bits")
