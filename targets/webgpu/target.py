"""Graphics cards through WebGPU. Pure data."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

# Kernels take groups of whole chunks of 32; a row (0) has one scale for all.
_GROUPS = (0, 32, 64, 128, 256)

TARGETS = (
    Target(
        family="webgpu",
        variant="gpu",
        description="Any GPU with Vulkan, Metal or D3D12 through WebGPU",
        lowering=None,
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
        repacks_weights=True,
        evidence="emulated",
    ),
)
