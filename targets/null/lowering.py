"""The compile half: from the optimised, quantised graph to an executable. Only the compiler loads this.

Copying this: a real chip runs its own passes here, generates code or calls its vendor's compiler,
writes what comes out into ``directory`` and puts large constants into ``weights``.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Lower a graph for one of the family's targets.

    Args:
        imported: The graph; it belongs to the pipeline, so work on a clone to change it.
        target: Which of the family's targets; ask it, never compare its name.
        directory: Where the executable's files go.
        weights: The artifact's weights file. Add each constant once, keep the offset it returns,
            and store no bytes of it anywhere else: equal constants of all variants are shared.

    Raises:
        UnsupportedError: The chip cannot run a node; it is named.
    """
    # 1. Refuse before any work is done: by the rules in target.py, and then what depends on more
    #    than an operator's name. Whatever only code generation can notice may be refused later, by
    #    the same error: always naming the node, and what to do instead.
    refuse_operators(imported.graph, target)
    _refuse_old_batch_norms(imported.graph)

    # 2. The chip's own passes would change a clone of the graph here, each with a PassRecord.

    # 3. Code generation would write files here and list them below. This chip's executable is the
    #    portable graph, which every artifact has already, so there is nothing to write.

    return LoweredVariant(
        files=[],
        # What the provider needs of the machine to run this; it compares before it loads.
        requires={"onnx": onnx.__version__},
        producer={"onnx": onnx.__version__},
        # What the provider must load it with, so that it runs as it was measured.
        options={},
        # Where each operator went: to the chip, or back to the host. Nothing may be left unsaid.
        coverage=full_coverage(imported.graph),
        # What one decoded token reads; with the memory's bandwidth it bounds the tokens a second.
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.kind == "decoder" else 0,
    )


def _refuse_old_batch_norms(model: ir.Model) -> None:
    """Refuse what onnx's evaluator computes as if it were training: no numbers are better than wrong ones."""
    if model.opset_imports.get("", 14) >= 14:
        return
    for node in model.graph.all_nodes():
        if node.op_type == "BatchNormalization":
            raise UnsupportedError(
                f"onnx's evaluator cannot run {node.op_type} ({node.name or node.outputs[0].name}) before opset 14.",
                "Export the model with a newer opset, or compile it for --target reference.",
            )
