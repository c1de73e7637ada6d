"""A graph of fixed shapes as kernels: each node by the table of its operator, expressions joined where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from aicc.runtime.errors import UnsupportedError, first_line
from aicc.targets.webgpu.lowering.tensors import movement, pointwise, products, reductions, windows
from aicc.targets.webgpu.lowering.tensors.builder import Builder, scalar_of, whole
from aicc.targets.webgpu.lowering.tensors.values import NARROW, Buffer, Dispatch, Number, Refused, Shape, Stored, Value

OPERATORS: dict[str, Callable[..., Value | list[Value]]] = {
    **pointwise.OPERATORS,
    **movement.OPERATORS,
    **products.OPERATORS,
    **reductions.OPERATORS,
    **windows.OPERATORS,
}
_ONNX = ("", "ai.onnx")
_REGION = 12  # nodes between a value that several read and the one that all of them lead to


@dataclass(frozen=True)
class Port:
    """An input or output of a graph and its memory."""

    name: str
    dtype: ir.DataType
    shape: Shape
    buffer: Buffer


@dataclass(frozen=True)
class Kernels:
    """A graph's kernels in order, its inputs and its outputs."""

    dispatches: list[Dispatch]
    inputs: list[Port]
    outputs: list[Port]


def lower_graph(model: ir.Model, names: Sequence[str]) -> Kernels:
    """Write the kernels of a graph.

    Args:
        model: Every value has a fixed shape. Weights are not read.
        names: Of its outputs, of which simplifying may have given two one value.

    Raises:
        UnsupportedError: A node has no kernel; it is named.
    """
    graph, b = model.graph, Builder()
    values: dict[ir.Value, Value] = {}
    inputs, order = [], {node: number for number, node in enumerate(graph)}
    for value in graph.inputs:
        with _refusing(f"the input {value.name}"):
            values[value] = made = _input(value)
            inputs.append(Port(str(value.name), made.dtype, made.shape, made.buffer))
    for value in graph.initializers.values():
        with _refusing(f"the constant {value.name}"):
            values.setdefault(value, _initializer(b, value))
    for node in graph:
        name = f"{node.op_type} ({node.name or node.outputs[0].name})"
        b.label = name
        with _refusing(name):
            results = _compute(b, node, [None if v is None else values[v] for v in node.inputs])
            for value, result in zip(node.outputs, results, strict=False):
                read_once = len(value.uses()) + value.is_graph_output() <= 1
                keep = isinstance(result, (Stored, Number)) or read_once or _rejoins(value, order)
                values[value] = result if keep else b.stored(result)
    taken, outputs = {port.buffer for port in inputs}, []
    for name, value in zip(names, graph.outputs, strict=True):
        b.label = "output"
        with _refusing(f"the output {name}"):
            outputs.append(_output(b, name, values[value], taken))
    return Kernels(b.dispatches, inputs, outputs)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Say what of the graph it is that has no kernel."""
    try:
        yield
    except (Refused, TypeError, ValueError, LookupError) as error:
        raise UnsupportedError(
            f"{what} has no kernel for GPUs here: {first_line(error)}.",
            "Compile for another target, such as openvino:cpu.",
        ) from error


def _input(value: ir.Value) -> Stored:
    shape = tuple(int(size) for size in value.shape or ())
    return whole(Buffer(4 * max(prod(shape), 1), scalar_of(value.dtype)), shape, value.dtype)


def _initializer(b: Builder, value: ir.Value) -> Value:
    """A constant: large ones as they are stored if shaders can read that, small ones as text or 32 bits."""
    tensor = value.const_value
    assert tensor is not None
    scalar, shape = scalar_of(tensor.dtype), tuple(int(size) for size in tensor.shape)
    direct = tensor.dtype in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT32)
    if tensor.size <= 1 or not (direct or tensor.dtype in NARROW):
        return b.constant(tensor.numpy(), tensor.dtype)
    buffer = Buffer(-(-tensor.nbytes // 4) * 4, scalar if direct else "u32", tensor)
    return whole(buffer, shape, tensor.dtype)


def _compute(b: Builder, node: ir.Node, inputs: list[Value | None]) -> list[Value]:
    function = OPERATORS.get(node.op_type) if node.domain in _ONNX else None
    if function is None:
        raise Refused("there is no kernel of it")
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    for value in used:
        scalar_of(value.dtype)
    made = function(b, node.attributes, *inputs)
    results = made if isinstance(made, list) else [made]
    for result in results:
        if result.root is not None:
            result.root.label = result.root.label or b.label
    if any(value in used for value in node.outputs[len(results) :]):
        raise Refused("not all its outputs are computed")
    return results


def _output(b: Builder, name: str, value: Value, taken: set[Buffer]) -> Port:
    """Memory of its own for an output: not an input's, nor a constant's, nor another output's."""
    target = b.stored(value).buffer
    if target in taken or target.constant is not None:
        target = Buffer(4 * max(value.size, 1), value.scalar)
        b.write(value, target)
    taken.add(target)
    return Port(name, value.dtype, value.shape, target)


def _rejoins(value: ir.Value, order: dict[ir.Node, int]) -> bool:
    """Whether all that reads a value leads, element by element, to one value again: one kernel computes it then."""
    inside: set[ir.Node] = set()
    open_values = [value]
    for _ in range(_REGION):
        readers = {use.node for v in open_values for use in v.uses() if use.node not in inside}
        if any(v.is_graph_output() for v in open_values) or not readers:
            return False
        node = min(readers, key=order.__getitem__)
        if node.op_type not in pointwise.OPERATORS or len(node.outputs) != 1 or node.outputs[0].shape != value.shape:
            return False
        inside.add(node)
        open_values = [v for v in (*open_values, node.outputs[0]) if _is_open(v, inside)]
        if open_values == [node.outputs[0]]:
            return True
    return False


def _is_open(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in inside for use in value.uses())
