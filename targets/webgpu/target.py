"""Graphics cards through WebGPU. Pure data."""

from __future__ import annotations

from aicc.runtime.target import OpRule, Target, WeightFormat

# Kernels take groups of whole chunks of 32; a row (0) has one scale for all.
_GROUPS = (0, 32, 64, 128, 256)

# What ONNX defines by other operators and has no kernel of its own.
_RULES: dict[str, OpRule] = dict.fromkeys(
    (
        "Attention", "BlackmanWindow", "CenterCropPad", "DynamicQuantizeLinear", "GroupNormalization",
        "HammingWindow", "HannWindow", "MeanVarianceNormalization", "NegativeLogLikelihoodLoss",
        "RMSNormalization", "RotaryEmbedding", "SoftmaxCrossEntropyLoss",
    ),
    "decompose",
)  # fmt: skip

TARGETS = (
    Target(
        family="webgpu",
        variant="gpu",
        description="Any GPU with Vulkan, Metal or D3D12, through WebGPU",
        lowering="aicc.targets.webgpu.lowering:lower",
        provider="aicc.targets.webgpu.provider:WebGpuProvider",
        device="GPU",
        extra="webgpu",
        weight_formats=(
            WeightFormat(4, _GROUPS, "float"),
            WeightFormat(8, _GROUPS, "float"),
            WeightFormat(16),
            WeightFormat(32),
        ),
        kv_dtypes=("float16", "float32"),
        op_rules=_RULES,
        shapes="rows",
        repacks_weights=True,
        evidence="emulated",
    ),
)
