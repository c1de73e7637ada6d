"""ONNX as onnxruntime computes it on the CPU, in float32. Pure data."""

from __future__ import annotations

from aicc.runtime.target import CALIBRATED, Target, WeightFormat

_GROUPS = (0, 16, 32, 64, 128, 256)

TARGETS = (
    Target(
        family="reference",
        variant="cpu",
        description="ONNX's own semantics through onnxruntime on the CPU, float32: what others are compared with",
        lowering="aicc.targets.reference.lowering:lower",
        provider="aicc.targets.reference.provider:ReferenceProvider",
        device="CPU",
        extra="compile",
        compute_dtypes=("float32",),
        weight_formats=(
            WeightFormat(4, _GROUPS, "float"),
            WeightFormat(8, _GROUPS, "float"),
            WeightFormat(16),
            WeightFormat(32),
        ),
        kv_dtypes=("float32",),
        # Simulated in float32: what integers would cost a model, before there is a chip.
        activations=CALIBRATED,
        calibration="optional",
    ),
)
