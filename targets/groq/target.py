"""What Groq's language processing unit takes, by the public contract of GroqFlow."""

from __future__ import annotations

from types import MappingProxyType

from aicc.runtime.target import Target, WeightFormat

CHIP_BYTES = 220 << 20
MAX_CHIPS = 64  # of the largest topology
# Operators of opsets after 16, which GroqFlow's compiler does not know.
_NEWER = ("Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Gelu", "Swish")

TARGETS = (
    Target(
        family="groq",
        variant="lpu",
        description="Groq LPU: static ONNX graphs and a partition over chips, for GroqFlow's contract",
        lowering="aicc.targets.groq.lowering:lower",
        provider=None,
        device="LPU",
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(16),),
        kv_dtypes=("float16",),
        op_rules=MappingProxyType(dict.fromkeys(_NEWER, "decompose")),
        shapes="static",
        memory_bytes=CHIP_BYTES,
        devices=MAX_CHIPS,
        repacks_weights=True,
        evidence="prepared",
    ),
)
