"""What the wafer-scale engines of Cerebras take."""

from __future__ import annotations

from types import MappingProxyType

from aicc.runtime.target import Target, WeightFormat

CORE_BYTES = 48_000  # of memory a core, code included
CODE_BYTES = 8_000  # of it for code and buffers, as the cost model has it
# Cores across and down, as the maker's SDK takes them (cslc --fabric-dims).
FABRICS = {"wse2": (757, 996), "wse3": (762, 1172)}
_WRITTEN_OUT = ("Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Swish")


def _wafer(variant: str, description: str) -> Target:
    across, down = FABRICS[variant]
    return Target(
        family="cerebras",
        variant=variant,
        description=description,
        lowering="aicc.targets.cerebras.lowering:lower",
        provider=None,
        device=variant.upper(),
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(16),),
        kv_dtypes=("float16",),
        op_rules=MappingProxyType(dict.fromkeys(_WRITTEN_OUT, "decompose")),
        shapes="static",
        memory_bytes=across * down * (CORE_BYTES - CODE_BYTES),
        evidence="prepared",
    )


TARGETS = (
    _wafer("wse3", "Cerebras WSE-3: blocks in torch-dialect MLIR for its lowering tool, and a placement"),
    _wafer("wse2", "Cerebras WSE-2: the same, with its cores"),
)
