"""The compile half: onnxruntime reads the portable graph itself, so it only has to be judged."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.runtime.target import Target


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Take the graph as it is; no files are written.

    Raises:
        UnsupportedError: The target's rules refuse a node; it is named.
    """
    refuse_operators(imported.graph, target)
    return LoweredVariant(
        files=[],
        requires={"onnxruntime": onnxruntime.__version__},
        producer={"onnxruntime": onnxruntime.__version__},
        coverage=full_coverage(imported.graph),
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.kind == "decoder" else 0,
    )
