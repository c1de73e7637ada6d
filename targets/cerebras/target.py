"""What the wafer-scale engines of Cerebras take."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat


def _wafer(variant: str, description: str) -> Target:
    return Target(
        family="cerebras",
        variant=variant,
        description=description,
        lowering=None,
        provider=None,
        device=variant.upper(),
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(16),),
        kv_dtypes=("float16",),
        shapes="static",
        evidence="prepared",
    )


TARGETS = (
    _wafer("wse3", "Cerebras WSE-3: blocks in torch-dialect MLIR for its lowering tool, and a placement"),
    _wafer("wse2", "Cerebras WSE-2: the same, with its cores"),
)
