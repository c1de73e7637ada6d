"""The ``optimize`` phase: target-independent passes, in order, with what each changed."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import PassError, common

from aicc.compiler.constants import refuse_large_constants
from aicc.compiler.importers import ImportedModel
from aicc.compiler.memory import memory_bounded
from aicc.compiler.passes.flatten_softmax import FlattenSoftmax
from aicc.compiler.passes.fold_constants import simplify
from aicc.compiler.passes.merge_projections import MergeProjections
from aicc.compiler.passes.static_shapes import fix_outputs, is_static
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target


def optimize(imported: ImportedModel, target: Target) -> list[PassRecord]:
    """Simplify a graph in place; nothing in here knows a target but by what it can do.

    Raises:
        UnsupportedError: The graph cannot be simplified, or its constants are too large to be computed.
    """
    if imported.exported is not None:
        return []  # a vendor's own graph: its exporter has simplified it, and our passes know ONNX
    passes: list[tuple[str, Callable[[ir.Model], object]]] = []
    if imported.info.kind == "onnx":  # graphs built by mobius come optimised
        passes.append(("onnxscript optimizer", _onnxscript))
        passes.append(("flatten old softmax", FlattenSoftmax()))  # after it: it gives such a Reshape a newer attribute
    if target.merges_projections and imported.kind == "decoder":
        passes.append(("merge projections", MergeProjections()))
    passes.append(("remove unused", common.RemoveUnusedNodesPass()))
    if target.shapes != "dynamic" and all(is_static(value) for value in imported.graph.graph.inputs):
        passes.append(("sizes of outputs", fix_outputs))
    if imported.info.kind != "onnx":
        return [run_pass(name, step, imported.graph) for name, step in passes]
    weights = (value.const_value for value in imported.graph.graph.initializers.values())
    with memory_bounded(sum(tensor.nbytes for tensor in weights if tensor is not None)):  # folding may ask for any size
        records = [run_pass(name, step, imported.graph) for name, step in passes]
    refuse_large_constants(imported.graph)
    return records


def _onnxscript(model: ir.Model) -> None:
    try:
        simplify(model)
    except PassError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UnsupportedError(
            f"the graph cannot be simplified: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}.",
            "Export it without sequences, optionals and local functions.",
        ) from error


def run_pass(name: str, step: Callable[[ir.Model], object], model: ir.Model) -> PassRecord:
    """Run one pass over a graph and note what it did."""
    before, started = sum(1 for _ in model.graph.all_nodes()), time.perf_counter()
    step(model)
    return PassRecord(
        name=name,
        seconds=time.perf_counter() - started,
        nodes_before=before,
        nodes_after=sum(1 for _ in model.graph.all_nodes()),
        changed=getattr(step, "changed", 0),
        refused=getattr(step, "refused", {}),
    )
