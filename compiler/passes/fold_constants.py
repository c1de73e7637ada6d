"""Constant folding and onnxscript's general simplifications, of anything but weights."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer

# Only small constants are folded: folding a weight would read it, and undo its quantisation.
_LIMIT_BYTES = 1024


def fold_constants(model: ir.Model, infer_shapes: bool = False) -> None:
    """Simplify a graph in place.

    Args:
        model: The graph.
        infer_shapes: Whether to follow shapes node by node on the way.
    """
    onnxscript.optimizer.optimize_ir(
        model, input_size_limit=_LIMIT_BYTES, output_size_limit=_LIMIT_BYTES, onnx_shape_inference=infer_shapes
    )
