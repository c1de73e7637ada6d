"""GPUs of NVIDIA and AMD through kernels in Triton. Pure data."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

# Kernels take groups of whole chunks of 32; a row (0) has one scale for all.
_GROUPS = (0, 32, 64, 128, 256)


def _target(variant: str, description: str) -> Target:
    return Target(
        family="triton",
        variant=variant,
        description=f"{description}: decoders; numbers checked by Triton's interpreter",
        lowering="aicc.targets.triton.lowering:lower",
        provider="aicc.targets.triton.provider:TritonProvider",
        device="GPU",
        extra="triton",
        compute_dtypes=("bfloat16", "float16"),
        weight_formats=(
            WeightFormat(4, _GROUPS, "float"),
            WeightFormat(8, _GROUPS, "float"),
            WeightFormat(8, (0,), dtype="float8e4m3"),
            WeightFormat(16),
            WeightFormat(16, dtype="bfloat16"),
        ),
        kv_dtypes=("float16",),
        repacks_weights=True,
        evidence="compiled",
    )


TARGETS = (
    _target("sm90", "NVIDIA H100, H200, GH200"),
    _target("sm80", "NVIDIA A100, A30"),
    _target("sm89", "NVIDIA L4, L40S, GeForce RTX 40"),
    _target("sm100", "NVIDIA B200, GB200"),
    _target("sm120", "NVIDIA GeForce RTX 50, RTX PRO Blackwell"),
    _target("gfx942", "AMD Instinct MI300X, MI300A, MI325X"),
    _target("gfx1100", "AMD Radeon RX 7900, PRO W7900"),
    _target("gfx1201", "AMD Radeon RX 9070"),
)
