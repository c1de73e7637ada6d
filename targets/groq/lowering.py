"""The compile half: static graphs in float16 at opset 16, a partition over chips, and the commands for the rest.

Groq's compiler and assembler are not public. Where they are on the PATH they are run, and their programs are part
of the artifact; elsewhere the artifact is what they take.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.graph_file import encode_graph
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.compiler.optimize import run_pass
from aicc.compiler.passes.explicit_cache import decoder_steps
from aicc.compiler.passes.half_floats import HalfFloats
from aicc.compiler.passes.static_shapes import StaticShapes
from aicc.compiler.report import PassRecord
from aicc.compiler.weights import WeightFile
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.groq.contract import (
    COMMANDS,
    IR_VERSION,
    OPSET,
    PACKAGE,
    WEIGHTS,
    Package,
    Program,
    check_package,
)
from aicc.targets.groq.partition import partition
from aicc.targets.groq.target import CHIP_BYTES
from aicc.targets.static_decoder import Step

_TOOL_SECONDS = 3600


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the package of a model.

    Args:
        imported: The graph, its weights in float16.
        target: Which of the family's targets.
        directory: Where the package goes. Its weights stand beside its graphs, where ONNX wants them.
        weights: Not used: a package is handed to tools that know nothing of an artifact.

    Raises:
        UnsupportedError: A node, or a type of an input or output, cannot be written for the contract; it is named.
        ResourceError: It takes more chips than there are topologies for.
    """
    refuse_operators(imported.graph, target)
    own = WeightFile(directory / WEIGHTS, Path(WEIGHTS))
    programs, passes = [], list[PassRecord]()
    try:
        for step, model in _graphs(imported):
            passes = [run_pass("float16", HalfFloats(), model), *legalise(model, target)]
            _as_opset(model)
            name = f"{step.name}.onnx"
            (directory / name).write_bytes(encode_graph(model, own, WEIGHTS))
            programs.append(Program(name, step.tokens, step.context, partition(model)))
            coverage = full_coverage(model)
        own.finish()
    finally:
        own.close()
    package = Package(OPSET, CHIP_BYTES, tuple(programs))
    (directory / PACKAGE).write_bytes(msgspec.json.format(msgspec.json.encode(package), indent=2) + b"\n")
    (directory / COMMANDS).write_text(_script(package))
    try:
        check_package(directory)
    except IntegrityError as error:
        reason = error.message.partition(": ")[2]
        raise UnsupportedError(f"GroqFlow does not take the model: {reason}", "Compile for another target.") from error
    _run_tools(package, directory)
    return LoweredVariant(
        files=sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()),
        requires={"groqflow": "4"},
        producer={"onnx": onnx.__version__},
        options={},
        coverage=coverage,
        passes=passes,
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def _graphs(imported: ImportedModel) -> Iterator[tuple[Step, ir.Model]]:
    """The graphs of a decoder's steps, or of a run of a model of tensors, every size a number."""
    if imported.llm is None:
        model = imported.graph.clone()
        StaticShapes({})(model)
        yield Step("model", 0, 0), model
    else:
        yield from decoder_steps(imported)


def _as_opset(model: ir.Model) -> None:
    """Write what newer opsets say by inputs and new attributes as opset 16 says it.

    Raises:
        UnsupportedError: An operator is newer than that, or says something that opset 16 cannot.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
            axes = ir.convenience.get_const_tensor(node.inputs[1])
            if axes is None:
                raise UnsupportedError(f"{node.op_type} ({node.name}) reduces over axes known only when it runs.")
            node.attributes["axes"] = ir.AttrInt64s("axes", np.asarray(axes.numpy()).reshape(-1).tolist())
            node.resize_inputs(1)
            node.attributes.pop("noop_with_empty_axes", None)
        for name in {"Split": ("num_outputs",), "Cast": ("saturate", "round_mode")}.get(node.op_type, ()):
            node.attributes.pop(name, None)
        try:
            schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        except onnx.defs.SchemaError as error:
            raise UnsupportedError(
                f"{node.op_type} ({node.name or node.outputs[0].name}) is not in opset {OPSET}, the newest that "
                "GroqFlow takes.",
                "Compile for another target.",
            ) from error
        if unknown := set(node.attributes) - set(schema.attributes):
            raise UnsupportedError(
                f"{node.op_type} ({node.name or node.outputs[0].name}) has {', '.join(sorted(unknown))}, which opset "
                f"{OPSET} lacks.",
                "Compile for another target.",
            )
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    ir.passes.common.RemoveUnusedNodesPass()(model)


def commands(program: Program) -> list[list[str]]:
    """What GroqFlow runs for a graph: its compiler, then the assembler for one chip or for several."""
    folder, chips = program.graph.removesuffix(".onnx"), len(program.chips)
    topology = f"DF_A14_{chips}_CHIP"
    several = [f"--multichip={topology}", "--partition-mode=daisy-chain"] if chips > 1 else []
    output = ["--save-stats", f"{folder}/stats.json", "-o", f"{folder}/output"]
    compiler = ["groq-compiler", *several, "--effort=standard", program.graph, *output]
    if chips > 1:
        return [compiler, ["python", "-m", "groqflow.justgroqit.assemble_multichip", topology, folder]]
    ordering = ["--ifetch-from-self", "--ifetch-slice-ordering=round-robin"]
    return [compiler, ["aa-latest", f"{folder}/output.aa", "--output-iop", f"{folder}/output.iop", *ordering]]


def _script(package: Package) -> str:
    lines = ["#!/bin/sh", "# With GroqWare and groqflow installed: makes the programs that the chips load.", "set -e"]
    for program in package.programs:
        lines.append(f"mkdir -p {program.graph.removesuffix('.onnx')}")
        lines += [shlex.join(command) for command in commands(program)]
    return "\n".join(lines) + "\n"


def _run_tools(package: Package, directory: Path) -> None:
    """Run the commands where Groq's tools are.

    Raises:
        MismatchError: The compiler is here and the assembler is not.
        UnsupportedError: A tool refused the package; its last line is given.
        ResourceError: A tool did not end.
    """
    if shutil.which("groq-compiler") is None:
        return
    for program in package.programs:
        (directory / program.graph.removesuffix(".onnx")).mkdir()
        for command in commands(program):
            if shutil.which(command[0]) is None:
                raise MismatchError(f"groq-compiler is here, and {command[0]} is not.", "Install all of GroqWare.")
            try:
                done = subprocess.run(
                    command, cwd=directory, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise ResourceError(
                    f"{command[0]} did not end in {_TOOL_SECONDS} seconds.", "Compile a smaller model."
                ) from error
            if done.returncode:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it gave no reason"]
                raise UnsupportedError(f"{command[0]} refused {program.graph}: {last[0][:300]}.", "See its messages.")
