"""The compile half: kernels in WGSL for the model's shapes, and the plan that launches them."""

from __future__ import annotations

from pathlib import Path

from aicc.compiler.coverage import refuse_operators
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.runtime.target import Target
from aicc.targets.webgpu.lowering import rows, tensors


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write ``plan.json`` and the kernels it launches.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file.

    Raises:
        UnsupportedError: A node has no kernel; it is named.
    """
    refuse_operators(imported.graph, target)
    lower_kind = tensors.lower_tensors if tensors.is_tensors(imported) else rows.lower_rows
    return lower_kind(imported, target, directory, weights)


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What would be refused, without reading a weight."""
    return (tensors if tensors.is_tensors(imported) else rows).refusals(imported, target)
