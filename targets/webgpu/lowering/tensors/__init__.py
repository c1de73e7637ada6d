"""Models of tensors of fixed sizes: vision, and whatever else is a graph of ONNX's operators, node by node."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import onnx_ir as ir

from aicc.compiler.coverage import full_coverage
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.passes.static_shapes import is_static
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.webgpu.lowering.tensors.assemble import assemble
from aicc.targets.webgpu.lowering.tensors.graph import Kernels, lower_graph
from aicc.targets.webgpu.plan import PLAN_FILE


def is_tensors(imported: ImportedModel) -> bool:
    """Whether a model is compiled here: every input has its size."""
    return imported.llm is None and all(is_static(value) for value in imported.graph.graph.inputs)


def lower_tensors(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the plan and its kernels.

    Args:
        imported: The optimised and quantised graph, its inputs of fixed shapes; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file.

    Raises:
        UnsupportedError: A node has no kernel, or a size that is only known at run time; it is named.
    """
    kernels, passes = _kernels(imported, target)
    started = time.perf_counter()
    plan, sources = assemble(kernels, weights)
    for name, text in sources.items():
        Path(directory, f"{name}.wgsl").write_text(text)
    Path(directory, PLAN_FILE).write_bytes(msgspec.json.encode(plan))
    nodes = sum(1 for _ in imported.graph.graph)
    passes.append(PassRecord("kernels in WGSL", nodes, len(plan.steps), time.perf_counter() - started))
    return LoweredVariant(
        files=[PLAN_FILE, *(f"{name}.wgsl" for name in sources)],
        requires={name: str(least) for name, least in plan.limits.items()},
        coverage=full_coverage(imported.graph),
        passes=passes,
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What would be refused, told by writing the kernels; no weight is read."""
    try:
        _kernels(imported, target)
    except UnsupportedError as error:
        return [Refusal("", "", error.message.rstrip("."))]
    return []


def _kernels(imported: ImportedModel, target: Target) -> tuple[Kernels, list[PassRecord]]:
    model: ir.Model = imported.graph.clone()
    names = [str(value.name) for value in model.graph.outputs]
    passes = legalise(model, msgspec.structs.replace(target, shapes="static"))
    return lower_graph(model, names), passes
