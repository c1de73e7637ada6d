"""Graphs in and out of ONNX text, for the tests of passes."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator


def graph(text: str, opset: int = 24, **weights: NDArray[Any]) -> ir.Model:
    """A model from ONNX text, ``(inputs) => (outputs) { nodes }``, and its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : {opset}]> g {textwrap.dedent(text)}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(proto)


def text(model: ir.Model) -> str:
    """A graph's nodes, one a line; values that pass made are called v0, v1 … in order."""
    names: dict[ir.Value, str] = {}
    kept = {*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()}

    def name(value: ir.Value | None) -> str:
        if value is None:
            return ""
        made = len([n for n in names.values() if n.startswith("v")])
        return names.setdefault(value, str(value.name) if value in kept else f"v{made}")

    lines = []
    for node in model.graph:
        inputs = ", ".join(name(value) for value in node.inputs)
        attributes = ", ".join(
            f"{a.name} = {_plain(a)}" for a in sorted(node.attributes.values(), key=lambda a: a.name)
        )
        outputs = ", ".join(name(value) for value in node.outputs)
        lines.append(f"{outputs} = {node.op_type}{attributes and f' <{attributes}>'} ({inputs})")
    return "\n".join(lines)


def lines(expected: str) -> str:
    """The expected text as a test writes it, indented in a triple-quoted string."""
    return textwrap.dedent(expected).strip()


def run(model: ir.Model, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs by ONNX's reference evaluator."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal values, the same in every run."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _plain(attribute: ir.Attr) -> str:
    value = attribute.value
    return str(list(value) if isinstance(value, tuple) else value)
