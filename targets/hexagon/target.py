"""What Qualcomm's HTP can do. Pure data."""

from __future__ import annotations

from aicc.runtime.target import OpRule, Target, WeightFormat

# The chip has no fused attention. It normalises by itself: squares of large activations overflow half precision.
_RULES: dict[str, OpRule] = {
    "Attention": "decompose",
    "RotaryEmbedding": "decompose",
    "Swish": "decompose",
    "DynamicQuantizeLinear": "refuse",
}
_FOUND_IN = {
    "htp75": "Snapdragon 8 Gen 3",
    "htp73": "Snapdragon 8 Gen 2, X Elite",
    "htp79": "Snapdragon 8 Elite",
    "htp81": "Snapdragon 8 Elite Gen 5",
}

TARGETS = tuple(
    Target(
        family="hexagon",
        variant=variant,
        description=f"Qualcomm Hexagon HTP v{variant[3:]} ({chips}) through onnxruntime's QNN provider",
        lowering="aicc.targets.hexagon.lowering:lower",
        provider="aicc.targets.hexagon.provider:HexagonProvider",
        device="HTP",
        extra="hexagon",
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(32),),
        kv_dtypes=("float32",),
        activations=("uint16", "uint8"),
        calibration="optional",
        float_operators=("BatchNormalization", "LayerNormalization"),
        partitions=("chip", "host"),
        op_rules=_RULES,
        shapes="static",
        repacks_weights=True,
        evidence="emulated",
    )
    for variant, chips in _FOUND_IN.items()
)
