"""The CompileReport: how a model was made, stored in the artifact as ``report.json``."""

from __future__ import annotations

import msgspec

from aicc.runtime.artifact import Quality


class PassRecord(msgspec.Struct):
    """What one pass changed. ``refused`` says which near misses it left alone, and why."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float = 0.0  # 0 if it was not measured, or timings.json is gone
    changed: int = 0  # matches rewritten
    refused: dict[str, str] = {}


class PhaseRecord(msgspec.Struct):
    """How long one phase took, and what its passes did."""

    name: str  # import | optimize | quantize | lower | package
    seconds: float = 0.0
    peak_rss_bytes: int = 0  # of the process so far, at the end of the phase
    passes: list[PassRecord] = []


class OpCoverage(msgspec.Struct):
    """Where the nodes of one operator went: ``delegated`` to the chip, ``fallback`` to the host."""

    op: str
    delegated: int
    fallback: int = 0
    refused: int = 0
    reason: str = ""


class LayerRecord(msgspec.Struct):
    """Bytes of one named group of weights, for the picture of the model."""

    name: str
    bytes: int
    format: str


class KernelRecord(msgspec.Struct):
    """What a compiled kernel takes of a GPU, as its binary says."""

    name: str
    threads: int  # of a program
    registers: int  # of a thread
    shared_bytes: int  # of a program
    stack_bytes: int  # of a thread: where registers are spilled to


class CompileReport(msgspec.Struct):
    """Everything that is known of a compile; volatile figures go to ``timings.json``."""

    target: str
    quantization: str
    phases: list[PhaseRecord] = []
    coverage: list[OpCoverage] = []
    layers: list[LayerRecord] = []
    weight_bytes_per_token: int = 0
    quality: Quality | None = None
    notes: list[str] = []
    kernels: dict[str, list[KernelRecord]] = {}  # of targets whose kernels are compiled ahead of time, by target
    importer: str = ""  # mobius | onnx | optimum
