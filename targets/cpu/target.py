"""Processors that aicc makes native code for. Pure data; the first that a machine can run is its default."""

from __future__ import annotations

from aicc.runtime.target import Evidence, Target, WeightFormat

# Kernels take groups of 32, 64 and 128; a row (0) or a larger group is cut into these.
_GROUPS = (0, 32, 64, 128, 256)


def _target(
    variant: str,
    description: str,
    architecture: str,
    instruction_sets: tuple[str, ...],
    evidence: Evidence = "emulated",
) -> Target:
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
        compilers=("ziglang",),
        repacks_weights=True,
        architecture=architecture,
        instruction_sets=instruction_sets,
        evidence=evidence,
    )


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512_vnni")
_AMX = (*_AVX512, "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")

TARGETS = (
    _target("amx", "x86-64 with AMX: tiles for prompts and batches", "x86_64", _AMX, "runs"),
    _target("avx512-vnni", "x86-64 with AVX-512 and VNNI", "x86_64", _AVX512, "runs"),
    _target("x86-64-v3", "x86-64 with AVX2 and FMA", "x86_64", _AVX2, "runs"),
    _target("portable", "Any x86-64, from plain C: what the others are compared with", "x86_64", (), "runs"),
    _target("aarch64-i8mm", "64-bit Arm with matrix products (Armv8.6)", "aarch64", ("asimd", "asimddp", "i8mm")),
    _target("aarch64", "64-bit Arm with dot products (Armv8.2 with asimddp, Armv8.4)", "aarch64", ("asimd", "asimddp")),
    _target("aarch64-portable", "Any 64-bit Arm, from plain C", "aarch64", ("asimd",)),
    _target("riscv64", "64-bit RISC-V with vectors (RVV 1.0)", "riscv64", ("rvv",)),
    _target("riscv64-portable", "Any 64-bit RISC-V (RV64GC), from plain C", "riscv64", ()),
)
