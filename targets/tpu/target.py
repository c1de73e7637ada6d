"""Google's TPUs, as one chip of each, and XLA's CPU back end for the numbers. Pure data."""

from __future__ import annotations

from aicc.runtime.target import OpRule, Target, WeightFormat

# What ONNX defines by other operators and jax.numpy has no function of the same name for.
_RULES: dict[str, OpRule] = dict.fromkeys(
    (
        "Attention", "BlackmanWindow", "Celu", "CenterCropPad", "DynamicQuantizeLinear", "Elu", "Gelu",
        "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "LayerNormalization",
        "LeakyRelu", "MeanVarianceNormalization", "Mish", "NegativeLogLikelihoodLoss", "PRelu", "RMSNormalization",
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "RotaryEmbedding", "Selu",
        "Shrink", "SoftmaxCrossEntropyLoss", "Softplus", "Softsign", "Swish", "ThresholdedRelu",
    ),
    "decompose",
)  # fmt: skip


def _target(variant: str, device: str, memory_gib: int | None, description: str) -> Target:
    return Target(
        family="tpu",
        variant=variant,
        description=description,
        lowering="aicc.targets.tpu.lowering:lower",
        provider="aicc.targets.tpu.provider:TpuProvider",
        device=device,
        extra="tpu",
        compute_dtypes=("float32", "bfloat16"),
        # Integers in groups would be spread out to floats in memory first; scales of a row follow the product.
        weight_formats=(WeightFormat(8, (0,)), WeightFormat(16), WeightFormat(32)),
        kv_dtypes=("float32",),
        op_rules=_RULES,
        shapes="static",
        memory_bytes=None if memory_gib is None else memory_gib << 30,
        evidence="runs" if memory_gib is None else "compiled",
    )


_CHECKED = "numbers checked on XLA's CPU back end (tpu:host)"

# Memory is what Google's documentation gives for a chip, and for TPU7x for one of the two devices a chip is.
TARGETS = (
    _target("v5e", "TPU v5e", 16, f"Google TPU v5e, one chip, by libtpu's compiler; {_CHECKED}"),
    _target("v5p", "TPU v5p", 95, f"Google TPU v5p, one chip, by libtpu's compiler; {_CHECKED}"),
    _target("v6e", "TPU v6e", 32, f"Google TPU v6e (Trillium), one chip, by libtpu's compiler; {_CHECKED}"),
    _target("tpu7x", "TPU7x", 96, f"Google TPU7x (Ironwood), half a chip, by libtpu's compiler; {_CHECKED}"),
    _target("host", "CPU", None, "The StableHLO of the TPUs on XLA's CPU back end: slow, to check their numbers"),
)
