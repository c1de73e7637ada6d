"""Arm Ethos-U: integers only, fixed shapes, one variant for each number of multipliers. Pure data."""

from __future__ import annotations

from aicc.runtime.target import Target, WeightFormat

# Generation → multiply-accumulates a cycle, the usual configuration first.
_CONFIGURATIONS = {"u55": (128, 256, 64, 32), "u65": (256, 512), "u85": (256, 512, 1024, 2048, 128)}

TARGETS = tuple(
    Target(
        family="ethos-u",
        variant=f"{generation}-{macs}",
        description=f"Arm Ethos-{generation.upper()} with as many multipliers as the name says, by Arm's Vela: "
        "calibrated int8 models of tensors; numbers checked by the TOSA reference model",
        lowering="aicc.targets.ethos_u.lowering:lower",
        provider="aicc.targets.ethos_u.provider:EthosUProvider",
        device="TOSA",
        extra="ethos-u",
        # Float weights reach the quantiser, which makes int8 by channel of them.
        weight_formats=(WeightFormat(8, (0,)), WeightFormat(32)),
        activations=("int8",),
        calibration="required",
        shapes="static",
        repacks_weights=True,
        # The chip's own compiler took it. What is executed here is the program that compiler was given.
        evidence="compiled",
    )
    for generation, configurations in _CONFIGURATIONS.items()
    for macs in configurations
)
