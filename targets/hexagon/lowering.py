"""The compile half: graphs of fixed shapes in the chip's operators → context binaries.

A decoder becomes two for each context, of a chunk of a prompt and of one token. Each binary has the weights in it:
those that share them can be made, but crash the emulator that reads them. Everything runs on the chip or is refused;
on request the processor runs what the chip refuses, and such nodes stand beside the binaries in one graph.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import onnx_ir as ir

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.disk import scratch
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.compiler.optimize import run_pass
from aicc.compiler.partition import partition
from aicc.compiler.passes.explicit_cache import decoder_steps, mask_inputs
from aicc.compiler.passes.static_shapes import StaticShapes
from aicc.compiler.report import OpCoverage, PassRecord
from aicc.runtime.errors import ResourceError, UnsupportedError
from aicc.runtime.machine import memory
from aicc.runtime.target import Target
from aicc.targets.hexagon.session import NOTHING_TAKEN, PACKAGE, PARTITION, STEPS_FILE, UNSUPPORTED, installed
from aicc.targets.static_decoder import Step, Steps

installed()  # or nothing is compiled
_BINARY = "EPContext"  # the operator that holds a part of the graph, compiled
_LEAST_STEP = 1e-7  # calibration here makes none below 4e-7
_SECONDS = 3600  # for one graph; real ones take seconds
_EXTERNAL_BYTES = 1 << 30  # a file of a graph ends at 2 GiB, so larger weights lie beside it


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Compile the graphs with the vendor's compiler, which keeps the weights in its own layout.

    Raises:
        MismatchError: The vendor's package is not installed.
        UnsupportedError: The chip cannot run a node; names it, and what would cross if the rest ran there.
        ResourceError: The compiler ran out of memory or time.
    """
    version, htp = installed(), target.variant.removeprefix("htp")
    refuse_operators(imported.graph, target)
    _refuse_integers_of_tokens(imported.graph, target)
    _refuse_tiny_steps(imported.graph, target)
    steps, passes = [], list[PassRecord]()
    for step, model, records in _graphs(imported, target):
        path = directory / f"{step.name}.onnx"
        _compile(model, path, htp, target)
        coverage = full_coverage(model)
        if target.partitions[0] == "host":
            coverage, note = _cut(step.name, coverage, path, target)
            imported.notes += note
        steps.append(step)
        passes += records
    files = [f"{step.name}.onnx" for step in steps]
    if imported.llm is not None:
        layout = Steps(tuple(steps), tuple(mask_inputs(model)))
        (directory / STEPS_FILE).write_bytes(msgspec.json.encode(layout))
        files.append(STEPS_FILE)
    return LoweredVariant(
        files=files,
        requires={PACKAGE: version, "htp": htp},
        producer={PACKAGE: version},
        options={PARTITION: target.partitions[0]},
        coverage=coverage,
        passes=passes,
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def _refuse_integers_of_tokens(model: ir.Model, target: Target) -> None:
    """Refuse quantised activations in a model that reads tokens: the emulator computed MiniLM's wrongly."""
    tokens = [value.name for value in model.graph.inputs if value.dtype is not None and value.dtype.is_integer()]
    if tokens and any(node.op_type == "QuantizeLinear" for node in model.graph):
        raise UnsupportedError(
            f"{target.name} computes with quantised activations in models of pictures and sound alone, and this one "
            f"reads {tokens[0]}.",
            "Leave --calibrate out: it computes in half precision then.",
        )


def _refuse_tiny_steps(model: ir.Model, target: Target) -> None:
    """Refuse weights of steps that the compiler mistakes: it gave 6.9 for 0 with 2e-9, and was right with 8e-7."""
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        weights, scales = (value.const_value if value else None for value in node.inputs[:2])
        if weights is None or scales is None or weights.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            continue
        if float(scales.numpy().min()) < _LEAST_STEP:
            raise UnsupportedError(
                f"{target.name} miscomputes weights of 8 bits with quantisation steps below {_LEAST_STEP:g}, as "
                f"those of node {node.name or node.outputs[0].name} are.",
                "Quantise with wider ranges, or give the model in floats, with --calibrate for integers.",
            )


def _graphs(imported: ImportedModel, target: Target) -> Iterator[tuple[Step, ir.Model, list[PassRecord]]]:
    """The graphs to compile, in the chip's operators, and what was done to get them."""
    if imported.llm is None:
        model = imported.graph.clone()
        passes = [run_pass("static shapes", StaticShapes({}), model), *legalise(model, target)]
        _separate_constants(model)
        yield Step("model", 0, 0), model, passes
        return
    for step, model in decoder_steps(imported):
        passes = legalise(model, target)
        _separate_constants(model)
        yield step, model, passes


def _separate_constants(model: ir.Model) -> None:
    """Give each ``DequantizeLinear`` of a constant integers of its own.

    Equal integers may stand for different numbers, as the largest do for any constant of one value. The provider
    knows one scale a tensor, that of its first reader, and computes other numbers without a word.
    """
    for value in list(model.graph.initializers.values()):
        readers = [use for use in value.uses() if use.node.op_type == "DequantizeLinear" and use.idx == 0]
        for count, (node, index) in enumerate(readers[1:], 1):
            name = f"{value.name}/{count}"
            own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            model.graph.register_initializer(own)
            node.replace_input_with(index, own)


def _cut(name: str, coverage: list[OpCoverage], result: Path, target: Target) -> tuple[list[OpCoverage], list[str]]:
    """What of a graph is in the binaries and what stands beside them, by operator, and a note if anything does.

    Args:
        name: Of the graph.
        coverage: Of the graph before it was compiled.
        result: The compiled graph; not there if the compiler took nothing.
        target: What it was compiled for.

    Raises:
        UnsupportedError: The chip runs none of it.
    """
    compiled = ir.load(result) if result.exists() else None
    beside = [node for node in compiled.graph if node.op_type != _BINARY] if compiled else []
    binaries = len(compiled.graph) - len(beside) if compiled else 0
    if compiled is None or not binaries:
        raise UnsupportedError(f"{target.name} can run no node of this graph.", "Compile it for --target openvino:cpu.")
    host = defaultdict(list)
    for node in beside:
        host[f"{node.domain}.{node.op_type}".removeprefix(".")].append(node.name or str(node.outputs[0].name))
    rows = {row.op: row for row in coverage}
    for op, names in host.items():
        made = max(rows[op].delegated - len(names), 0) if op in rows else 0
        rows[op] = OpCoverage(op, made, len(names), reason=f"Qualcomm's compiler does not take {', '.join(names)}")
    if not beside:
        return coverage, []
    crossing = partition(compiled, {node.name for node in beside}).boundary_bytes
    reasons = "; ".join(f"{op}: {rows[op].reason}" for op in sorted(host))
    note = (
        f"the processor runs {len(beside)} node(s) of {name}, with {binaries} piece(s) on the chip and {crossing:,} "
        f"bytes to and from it at each step. {reasons}"
    )
    return [rows[op] for op in sorted(rows)], [note]


def _compile(model: ir.Model, result: Path, htp: str, target: Target) -> None:
    """One graph, in a process of its own."""
    with scratch("hexagon") as folder:
        source = folder / "graph.onnx"
        large = sum(v.const_value.nbytes for v in model.graph.initializers.values()) > _EXTERNAL_BYTES
        ir.save(model, source, external_data="graph.data" if large else None)
        # The graph has the same name each time: the compiler makes names of it that end up in the binary.
        arguments = [source.name, result.absolute(), htp, target.partitions[0], str(memory().available)]
        command = [sys.executable, "-P", "-m", "aicc.targets.hexagon.session", *arguments]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ResourceError(
                f"Qualcomm's compiler was not done with {result.name} after {_SECONDS // 60} minutes.",
                "Compile a smaller model, or for a shorter context (--size context=N).",
            ) from error
    if done.returncode:
        raise _failure(model, target, done.returncode, done.stderr)


def _failure(model: ir.Model, target: Target, status: int, output: str) -> UnsupportedError | ResourceError:
    """What the compiler's output says, by node if it names some."""
    if UNSUPPORTED in output:
        line = output.partition(UNSUPPORTED)[2].splitlines()[0]
        named = re.findall(r"\{ name: (.*?), type: (\w+) \}", line)
        cut = partition(model, [name for name, _ in named])
        nodes = ", ".join(f"{op} ({name})" for name, op in named[:5])
        return UnsupportedError(
            f"{target.name} cannot run {len(named)} node(s) of this graph: {nodes}{' …' if len(named) > 5 else ''}. "
            f"The rest would be {cut.pieces} piece(s), with {cut.boundary_bytes:,} bytes to and from the host a step.",
            "Let the device's processor run them (--partition host), or compile for --target openvino:cpu.",
        )
    if "MEM_ALLOC" in output or "MemoryError" in output or "bad_alloc" in output or status == -9:
        return ResourceError(
            "Qualcomm's compiler had not enough memory.", "Close other programs, or compile a smaller model."
        )
    if NOTHING_TAKEN in output:  # with no node named, above: it is not the graph's fault
        return ResourceError(
            f"Qualcomm's compiler cannot be loaded into the {memory().available:,} bytes of memory there are.",
            f"Close other programs, or install {PACKAGE} again.",
        )
    last = ([line for line in output.splitlines() if line.strip()] or [f"it ended with status {status}"])[-1]
    return UnsupportedError(
        f"Qualcomm's compiler refused the graph for {target.name}: {last[:400]}.",
        "Compile for --target openvino:cpu.",
    )
