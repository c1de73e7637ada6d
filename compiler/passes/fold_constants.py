"""Constant folding and onnxscript's general simplifications, of anything but weights."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import Sequential, common

from aicc.compiler.quiet import quiet

# Only small constants are folded: folding a weight would read it, and undo its quantisation.
_LIMIT_BYTES = 1024


def simplify(model: ir.Model) -> None:
    """Everything onnxscript knows, in place; transposed weights are folded too."""
    with quiet():
        onnxscript.optimizer.optimize_ir(
            model, input_size_limit=_LIMIT_BYTES, output_size_limit=_LIMIT_BYTES, onnx_shape_inference=False
        )


def fold_shapes(model: ir.Model) -> None:
    """Constant folding alone, in place, following shapes from node to node; no weight is read."""
    with quiet():
        onnxscript.optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=_LIMIT_BYTES,
            output_size_limit=_LIMIT_BYTES,
            should_fold=_unless_large,
        )
        Sequential(
            common.IdentityEliminationPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedOpsetsPass(),
            common.NameFixPass(),
        )(model)


def _unless_large(node: ir.Node) -> bool | None:
    """No for a node with a weight among its inputs, yes for a few equal numbers, else whatever onnxscript decides."""
    tensors = [value.const_value for value in node.inputs if value is not None]
    if any(tensor is not None and tensor.nbytes > _LIMIT_BYTES for tensor in tensors):
        return False
    if node.op_type == "ConstantOfShape" and tensors[0] is not None:  # which onnxscript leaves, and paddings begin with
        return bool(tensors[0].numpy().prod() <= _LIMIT_BYTES // 8) or None
    return None
