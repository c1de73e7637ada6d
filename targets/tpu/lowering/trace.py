"""A graph of fixed shapes as a function of jax arrays: its weights, then its inputs, in; its outputs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from aicc.compiler.graph_file import INLINE_BYTES
from aicc.runtime.errors import UnsupportedError, first_line
from aicc.targets.tpu.lowering.operators import OPERATORS, Array, Refused

_ONNX = ("", "ai.onnx")


def large_constants(model: ir.Model) -> list[ir.Value]:
    """The constants that are arguments of the function, in order; the others are part of the program."""
    return [value for value in model.graph.initializers.values() if value.const_value.nbytes > INLINE_BYTES]


def argument_type(value: ir.Value) -> jax.ShapeDtypeStruct:
    """Shape and type of a weight.

    Raises:
        UnsupportedError: Its values have less than a byte each.
    """
    tensor = value.const_value
    if tensor.dtype.is_string() or tensor.dtype.bitwidth < 8:
        raise UnsupportedError(
            f"the constant {value.name} is {tensor.dtype.name}, which TPUs are not given here.", "Use --quant int8."
        )
    return jax.ShapeDtypeStruct(tuple(tensor.shape), tensor.dtype.numpy())


def as_function(model: ir.Model) -> Callable[[Sequence[Array], Sequence[Array]], list[Array]]:
    """The function a graph is; nothing is computed, and no weight read, until it is traced.

    Raises (when it is traced):
        UnsupportedError: A node cannot be computed; it is named.
    """

    def function(weights: Sequence[Array], inputs: Sequence[Array]) -> list[Array]:
        values: dict[ir.Value, Any] = dict(zip(model.graph.inputs, inputs, strict=True))
        values |= zip(large_constants(model), weights, strict=True)
        for value in model.graph.initializers.values():
            if value not in values:
                values[value] = _widened(value.const_value.numpy())
        for node in model.graph:
            results = _compute(node, [None if v is None else values[v] for v in node.inputs])
            values |= zip(node.outputs, results, strict=False)
        return [jnp.asarray(values[output]) for output in model.graph.outputs]

    return function


def _compute(node: ir.Node, inputs: list[Array]) -> list[Array]:
    function = OPERATORS.get(node.op_type) if node.domain in _ONNX else None
    # What depends on constants alone is computed now: shapes, axes and bounds have to be known.
    traced = any(isinstance(value, jax.core.Tracer) for value in inputs)
    try:
        if function is None:
            raise Refused("there is no translation of it")
        with nullcontext() if traced else jax.ensure_compile_time_eval():
            result = function(node.attributes, *inputs)
            results = list(result) if isinstance(result, (list, tuple)) else [result]
            if any(value.uses() or value.is_graph_output() for value in node.outputs[len(results) :]):
                raise Refused("not all its outputs are computed here")
            return results if traced else [np.asarray(each) for each in results]
    except (Refused, TypeError, ValueError, LookupError, NotImplementedError) as error:
        name = node.name or node.outputs[0].name
        raise UnsupportedError(
            f"{node.op_type} ({name}) cannot be compiled to StableHLO: {first_line(error)}.",
            "Compile for another target, such as openvino:cpu.",
        ) from error


def _widened(array: np.ndarray) -> np.ndarray:
    """Integers of less than a byte as bytes: few operators of numpy and jax know them."""
    narrow = {"int4": np.int8, "uint4": np.uint8}.get(array.dtype.name)
    return array if narrow is None else array.astype(narrow)
