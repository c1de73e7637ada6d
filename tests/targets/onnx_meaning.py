"""What ONNX says that some operators compute."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator


def meaning(text: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs of a graph by ONNX's reference evaluator.

    Args:
        text: The graph as ONNX text, ``(inputs) => (outputs) { nodes }``.
        inputs: Arrays by name.
    """
    graph = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 24]> g {text}')
    return ReferenceEvaluator(graph).run(None, inputs)  # type: ignore[no-any-return]
