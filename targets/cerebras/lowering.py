"""The compile half: static graphs in float16 as torch-dialect MLIR, through the maker's tool, and a placement.

The tool ends at CIRH. What makes programs of it is not public, so the artifact is what that takes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import onnx_ir as ir

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.optimize import run_pass
from aicc.compiler.passes.explicit_cache import decoder_steps
from aicc.compiler.passes.half_floats import HalfFloats
from aicc.compiler.report import PassRecord
from aicc.compiler.weights import tensor_bytes
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.cerebras.mlir import Function, write_function
from aicc.targets.cerebras.placement import Region, place
from aicc.targets.cerebras.target import CODE_BYTES, CORE_BYTES
from aicc.targets.cerebras.tool import TOOL, check_machine, find_tool, run_tool
from aicc.targets.static_decoder import Step

PACKAGE = "package.json"


class Argument(msgspec.Struct, frozen=True):
    """An argument of a function: an input, or a weight with its place in ``weights/model.bin``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None
    bytes: int | None = None


class Program(msgspec.Struct, frozen=True):
    """One function: its files, its arguments and results in order, and its operators before and after the tool."""

    source: str
    lowered: str
    tokens: int
    context: int
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    torch: dict[str, int]
    cirh: dict[str, int]


class Package(msgspec.Struct, frozen=True):
    """What ``package.json`` says."""

    tool: str
    core_bytes: int
    code_bytes: int
    programs: tuple[Program, ...]
    placement: tuple[Region, ...]


def prepare(target: Target) -> None:
    """Ask whether the tool is for this machine. It is fetched when a graph was written that it may take.

    Raises:
        MismatchError: It is not.
    """
    check_machine()


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Models of tensors: the subset was tried on decoders alone."""
    return [] if imported.llm is not None else [Refusal("", "model", f"{target.family} takes decoders alone so far")]


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the package of a decoder.

    Args:
        imported: The graph, its weights in float16.
        target: Which wafer.
        directory: Where the package goes.
        weights: Gets the weights, which the functions have as arguments.

    Raises:
        UnsupportedError: A node has no form in the subset, or the tool refused what was written.
        ResourceError: The wafer is too small.
        MismatchError: The tool is not for this machine.
    """
    if imported.llm is None:
        raise UnsupportedError(f"{target.name} takes decoders alone so far.", "Compile for another target.")
    refuse_operators(imported.graph, target)
    regions, programs, passes = list[Region](), [], list[PassRecord]()
    for step, model in decoder_steps(imported):
        passes = [run_pass("float16", HalfFloats(), model), *legalise(model, target)]
        regions = place(model, target.variant)  # the last one's stays: a token in the longest context
        function = write_function(model)
        coverage = full_coverage(model)
        programs.append(_program(function, model, step, directory, weights))
    package = Package(f"torch-cirh-opt {TOOL.version}", CORE_BYTES, CODE_BYTES, tuple(programs), tuple(regions))
    (directory / PACKAGE).write_bytes(msgspec.json.format(msgspec.json.encode(package), indent=2) + b"\n")
    return LoweredVariant(
        files=sorted(path.name for path in directory.iterdir()),
        requires={"cerebras-pytorch": TOOL.version},
        producer={"cerebras-pytorch": TOOL.version},
        options={},
        coverage=coverage,
        passes=passes,
        weight_bytes_per_token=weight_bytes_per_token(imported.graph),
    )


def _program(function: Function, model: ir.Model, step: Step, directory: Path, weights: WeightStore) -> Program:
    """Write a function, have the tool lower it, and list its arguments."""
    source, lowered = directory / f"{step.name}.mlir", directory / f"{step.name}.cirh.mlir"
    source.write_text(function.text)
    cirh: Counter[str] = run_tool(find_tool(), source, lowered)
    return Program(
        source.name,
        lowered.name,
        step.tokens,
        step.context,
        tuple(_argument(value, weights) for value in function.arguments),
        tuple(str(value.name) for value in model.graph.outputs),
        dict(sorted(function.operators.items())),
        dict(sorted(cirh.items())),
    )


def _argument(value: ir.Value, weights: WeightStore) -> Argument:
    assert value.dtype is not None
    assert value.shape is not None
    name, dtype, shape = str(value.name), value.dtype.name.lower(), tuple(int(d) for d in value.shape)
    if value.const_value is None:
        return Argument(name, dtype, shape)
    data = tensor_bytes(value.const_value)
    return Argument(name, dtype, shape, weights.add(data), len(data))
