"""What a variant's folder holds, as both halves of the family name it."""

from __future__ import annotations

import msgspec

PROGRAM_FILE = "model.tosa"  # TOSA 1.0, what was compiled and what the reference model executes
COMMANDS_FILE = "model_vela.tflite"  # Vela's result: command stream, weights, memory plan
SUMMARY_FILE, LAYERS_FILE = "vela_summary.csv", "vela_layers.csv"  # Vela's estimates: modelled, not measured
PORTS_FILE = "ports.json"

# Pins of tosa-tools contradict onnx's; what is used of it works with newer packages.
INSTALL = "Run: pip install 'aicc[ethos-u]' and then: pip install --no-deps tosa-tools"


class Port(msgspec.Struct, frozen=True):
    """How the host turns a float tensor of the model into integers of the program, or back.

    Attributes:
        name: The tensor's, in the model's signature.
        scale: Step between neighbouring integers.
        zero_point: The integer that means 0.
    """

    name: str
    scale: float
    zero_point: int


class Ports(msgspec.Struct, frozen=True):
    """Inputs and outputs in the program's order. A tensor of rank 4 has its channels last in the program."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
