"""What the chip can do. Pure data: nothing is imported here but the words to say it in.

Copying this: the folder's name is the family. One :class:`Target` for each variant whose code is
different (an instruction set, a generation); the first one is the default.
"""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

# How many values may share a scale. A real chip lists what its kernels take; 0 is a whole row.
_GROUPS = (0, 16, 32, 64, 128, 256)

TARGETS = (
    Target(
        family="null",
        variant="host",
        description="Any machine, node by node through ONNX's reference evaluator: slow, for tests and as a skeleton",
        # Both halves are named, not imported: the compiler loads the first, the runtime the second.
        lowering="aicc.targets.null.lowering:lower",
        provider="aicc.targets.null.provider:NullProvider",
        # What users call the device; devices() of the provider describes it.
        device="HOST",
        # The pip extra that brings what the provider needs.
        extra="compile",
        compute_dtypes=("float32",),
        # Weights in one of these forms reach lower() unchanged; the quantize phase converts others.
        weight_formats=(
            WeightFormat(4, _GROUPS, "float"),
            WeightFormat(8, _GROUPS, "float"),
            WeightFormat(16),
            WeightFormat(32),
        ),
        # Types the KV cache may have; leave it empty if the chip runs no decoders.
        kv_dtypes=("float32",),
        # Operators the chip cannot run, by ONNX name: {"Loop": "refuse"}.
        op_rules={},
        shapes="dynamic",
        # "runs" is a promise that the tests run on it; see Target for the others.
        evidence="runs",
    ),
)
