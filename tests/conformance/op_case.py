"""What an operator case is, and the few words the cases are written in."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[np.generic]
OPSET = 24


@dataclass(frozen=True)
class Constant:
    """An input that is stored in the graph, as weights and shapes usually are."""

    array: Array


@dataclass(frozen=True)
class Case:
    """One operator with one set of attributes, shapes and types.

    Attributes:
        op: The operator under test.
        label: What is special about the case; with the operator it names the case.
        nodes: The graph.
        inputs: Arrays by name.
        initializers: Constants by name.
        outputs: Names of the outputs that are compared.
        opset: Version of the standard operators.
        tolerance: Row of ``tolerances.toml``.
        dynamic: Whether sizes of inputs are left open.
        judge: What computes the expected values: ONNX's reference ``evaluator``, or ``onnxruntime``
            where the evaluator does not follow the specification.
    """

    op: str
    label: str
    nodes: list[onnx.NodeProto]
    inputs: dict[str, Array]
    initializers: dict[str, Array] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y0",)
    opset: int = OPSET
    tolerance: str = "float32"
    dynamic: bool = True
    judge: Literal["evaluator", "onnxruntime"] = "evaluator"

    @property
    def name(self) -> str:
        """``Op`` or ``Op: label``."""
        return f"{self.op}: {self.label}" if self.label else self.op

    @cached_property
    def expected(self) -> dict[str, Array]:
        """What ONNX says the outputs are."""
        values = ReferenceEvaluator(self._model({})).run(None, self.inputs)
        if self.judge == "onnxruntime":
            typed = self._model(dict(zip(self.outputs, values, strict=True))).SerializeToString()
            values = onnxruntime.InferenceSession(typed).run(None, self.inputs)
        return {name: np.asarray(value) for name, value in zip(self.outputs, values, strict=True)}

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The model with typed inputs and outputs, as an exporter would write it."""
        return self._model(self.expected)

    def _model(self, outputs: Mapping[str, Array]) -> onnx.ModelProto:
        graph = onnx.helper.make_graph(
            self.nodes,
            "case",
            [self._info(name, array) for name, array in self.inputs.items()],
            [self._info(name, outputs[name]) if outputs else onnx.ValueInfoProto(name=name) for name in self.outputs],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=11)

    def _info(self, name: str, array: Array) -> onnx.ValueInfoProto:
        shape: list[Any] = [f"{name}.{axis}" for axis in range(array.ndim)] if self.dynamic else list(array.shape)
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def case(
    op: str,
    *arguments: Array | Constant | None,
    label: str = "",
    outputs: int | tuple[int, ...] = 1,
    opset: int = OPSET,
    tolerance: str = "float32",
    static: bool = False,
    judge: Literal["evaluator", "onnxruntime"] = "evaluator",
    **attributes: Any,
) -> Case:
    """A graph of one node.

    Args:
        op: Operator.
        arguments: Its inputs: arrays are fed, constants stored, None is an optional input left out.
        label: See :class:`Case`.
        outputs: How many outputs it has, or which ones are asked for.
        opset: See :class:`Case`.
        tolerance: See :class:`Case`.
        static: Whether the model says the sizes of its inputs.
        judge: See :class:`Case`.
        attributes: Of the node.
    """
    names = ["" if argument is None else f"x{index}" for index, argument in enumerate(arguments)]
    wanted = range(outputs) if isinstance(outputs, int) else outputs
    results = [f"y{index}" if index in wanted else "" for index in range(max(wanted) + 1)]
    fed, stored = {}, {}
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, Constant):
            stored[name] = np.asarray(argument.array)
        elif argument is not None:
            fed[name] = np.asarray(argument)
    node = onnx.helper.make_node(op, names, results, **attributes)
    names = tuple(result for result in results if result)
    return Case(op, label, [node], fed, stored, names, opset, tolerance, dynamic=not static, judge=judge)


def graph_case(op: str, label: str, text: str, opset: int = OPSET, tolerance: str = "float32", **inputs: Array) -> Case:
    """A few nodes in ONNX text, such as ``y = Relu (x)``; outputs are ``y``, or ``y0``, ``y1`` …"""
    signature = ", ".join(f"float {name}" for name in inputs)
    graph = onnx.parser.parse_graph(f"case ({signature}) => () {{ {text} }}")
    made = [name for node in graph.node for name in node.output if name.startswith("y")]
    return Case(op, label, list(graph.node), inputs, outputs=tuple(made), opset=opset, tolerance=tolerance)


def floats(*shape: int, scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float32]:
    """Normal values, the same for the same shape in every run."""
    generator = np.random.default_rng(zlib.crc32(repr(shape).encode()))
    return (generator.standard_normal(shape) * scale + shift).astype(np.float32)


def positive(*shape: int) -> NDArray[np.float32]:
    """Values between 0.1 and 3 or so."""
    return np.abs(floats(*shape)) + np.float32(0.1)


def unit(*shape: int) -> NDArray[np.float32]:
    """Values strictly between -1 and 1."""
    return np.tanh(floats(*shape)).astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 10, dtype: Any = np.int64) -> Array:
    """Integers in ``[low, high)``."""
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).integers(low, high, shape).astype(dtype)


def booleans(*shape: int) -> NDArray[np.bool_]:
    """About as many of one as of the other."""
    return floats(*shape) > 0


def ints(*values: int) -> Constant:
    """A stored int64 vector: shapes, axes, splits."""
    return Constant(np.array(values, np.int64))


def scalar(value: Any, dtype: Any = np.float32) -> Constant:
    """A stored scalar."""
    return Constant(np.array(value, dtype))
