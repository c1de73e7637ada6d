"""Processors that aicc makes native code for. Pure data; the first that a machine can run is its default."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

# Kernels take groups of 32, 64 and 128; a row (0) or a larger group is cut into these.
_GROUPS = (0, 32, 64, 128, 256)


def _target(variant: str, description: str, architecture: str, instruction_sets: tuple[str, ...]) -> Target:
    return Target(
        family="cpu",
        variant=variant,
        description=description,
        lowering="aicc.targets.cpu.lowering:lower",
        provider="aicc.targets.cpu.provider:CpuProvider",
        library="aicc.targets.cpu.lowering.library:write_library",
        device="CPU",
        weight_formats=(
            WeightFormat(4, _GROUPS, "float"),
            WeightFormat(8, _GROUPS, "float"),
            WeightFormat(16),
            WeightFormat(32),
        ),
        kv_dtypes=("float16", "float32", "int8"),
        activations=("mixed", "int8", "int16"),
        repacks_weights=True,
        architecture=architecture,
        instruction_sets=instruction_sets,
    )


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl")

TARGETS = (
    _target("avx512-vnni", "Native code for x86-64 with AVX-512 and VNNI", "x86_64", (*_AVX512, "avx512_vnni")),
    _target("x86-64-v3", "Native code for x86-64 with AVX2 and FMA", "x86_64", _AVX2),
    _target("portable", "Native code for any x86-64, from plain C: what the others are compared with", "x86_64", ()),
)
