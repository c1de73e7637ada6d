"""What OpenVINO's plugins can do. Pure data."""

from __future__ import annotations

from aicc.runtime.target import OpRule, Target, WeightFormat

# Group sizes the plugins' compressed fully-connected kernels take; 0 is one scale a row.
_GROUPS = (0, 16, 32, 64, 128)

_WEIGHTS = (
    WeightFormat(4, _GROUPS, "float"),
    WeightFormat(8, _GROUPS, "float"),
    WeightFormat(16),
    WeightFormat(32),
)

# Operators the plugin has no kernel for.
_RULES: dict[str, OpRule] = {"Optional": "refuse", "SequenceMap": "refuse", "StringNormalizer": "refuse"}

_LOWERING = "aicc.targets.openvino.lowering:lower"
_PROVIDER = "aicc.targets.openvino.provider:OpenVINOProvider"

TARGETS = (
    Target(
        family="openvino",
        variant="cpu",
        description="x86-64 and Arm CPUs through OpenVINO's CPU plugin",
        lowering=_LOWERING,
        provider=_PROVIDER,
        device="CPU",
        extra="openvino",
        compute_dtypes=("bfloat16", "float32"),
        weight_formats=_WEIGHTS,
        kv_dtypes=("uint8", "float16", "float32"),
        op_rules=_RULES,
        graph_domains=("openvino",),
        merges_projections=True,
    ),
    Target(
        family="openvino",
        variant="gpu",
        description="Intel integrated and Arc GPUs through OpenVINO's GPU plugin",
        lowering=_LOWERING,
        provider=_PROVIDER,
        device="GPU",
        extra="openvino",
        compute_dtypes=("float16", "float32"),
        weight_formats=_WEIGHTS,
        kv_dtypes=("float16", "uint8"),
        op_rules=_RULES,
        graph_domains=("openvino",),
        merges_projections=True,
        evidence="prepared",
    ),
    Target(
        family="openvino",
        variant="npu",
        description="Intel Core Ultra NPUs through OpenVINO's NPU plugin; tensor models only so far",
        lowering=_LOWERING,
        provider=_PROVIDER,
        device="NPU",
        extra="openvino",
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(8, (0,)), WeightFormat(16), WeightFormat(32)),
        kv_dtypes=(),
        op_rules=_RULES,
        graph_domains=("openvino",),
        shapes="static",
        evidence="prepared",
    ),
)
