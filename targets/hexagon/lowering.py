"""The compile half: graphs of fixed shapes in the chip's operators → context binaries.

A decoder becomes two, of a chunk of a prompt and of one token. Everything runs on the chip or is refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.legalise import legalise
from aicc.compiler.lowering import LoweredVariant, WeightStore
from aicc.compiler.optimize import run_pass
from aicc.compiler.partition import partition
from aicc.compiler.passes.explicit_cache import specialise_decoder
from aicc.compiler.passes.static_shapes import SEQUENCE, StaticShapes
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import ResourceError, UnsupportedError
from aicc.runtime.machine import memory
from aicc.runtime.target import Target
from aicc.targets.hexagon.session import NOTHING_TAKEN, PACKAGE, UNSUPPORTED, installed
from aicc.targets.static_decoder import BIAS

installed()  # or nothing is compiled
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
    graphs, passes = _graphs(imported, target)
    for name, model in graphs.items():
        _compile(model, directory / f"{name}.onnx", htp, target)
    first = next(iter(graphs.values()))
    options = {}
    if imported.llm is not None:
        biases = [str(value.name) for value in first.graph.inputs if str(value.name).startswith(BIAS)]
        options = {"context": str(imported.llm.context_length), "biases": ",".join(biases)}
    return LoweredVariant(
        files=[f"{name}.onnx" for name in graphs],
        requires={PACKAGE: version, "htp": htp},
        producer={PACKAGE: version},
        options=options,
        coverage=full_coverage(first),
        passes=passes,
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def _graphs(imported: ImportedModel, target: Target) -> tuple[dict[str, ir.Model], list[PassRecord]]:
    """The graphs to compile, by name; those of a decoder have their number of new tokens."""
    if imported.llm is None:
        model = imported.graph.clone()
        return {"model": model}, [run_pass("static shapes", StaticShapes({}), model), *legalise(model, target)]
    graphs, passes = {}, []
    context = imported.llm.context_length
    for tokens in dict.fromkeys((max(min(SEQUENCE, context // 2), 1), 1)):
        graphs[str(tokens)] = specialise_decoder(imported.graph, context, tokens, context)
        passes += legalise(graphs[str(tokens)], target)
    return graphs, passes


def _compile(model: ir.Model, result: Path, htp: str, target: Target) -> None:
    """One graph, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="aicc-hexagon-") as folder:
        source = Path(folder, "graph.onnx")
        large = sum(v.const_value.nbytes for v in model.graph.initializers.values()) > _EXTERNAL_BYTES
        ir.save(model, source, external_data="graph.data" if large else None)
        # The graph has the same name each time: the compiler makes names of it that end up in the binary.
        arguments = [source.name, result.absolute(), htp, str(memory().available)]
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
            "Cut these nodes off the model, or compile it for --target openvino:cpu.",
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
