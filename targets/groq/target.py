"""What Groq's language processing unit takes, by the public contract of GroqFlow."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

TARGETS = (
    Target(
        family="groq",
        variant="lpu",
        description="Groq LPU: static ONNX graphs and a partition over chips, for GroqFlow's contract",
        lowering=None,
        provider=None,
        device="LPU",
        compute_dtypes=("float16",),
        weight_formats=(WeightFormat(16),),
        kv_dtypes=("float16",),
        shapes="static",
        evidence="prepared",
    ),
)
