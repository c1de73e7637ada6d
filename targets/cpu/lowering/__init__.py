"""The compile half for processors: graph → row program → steps → C → machine code.

program.py    the graph as operations on rows of tokens
fuse.py       the operations as steps, between which threads wait for each other
memory.py     where the buffers between steps lie
pack.py       weights in the kernels' layout
emit.py       model.c
toolchain.py  the shared library
"""

from __future__ import annotations

import time
from pathlib import Path

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.facts import kv_dtype
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.cpu.lowering.emit import emit_model
from aicc.targets.cpu.lowering.fuse import fuse
from aicc.targets.cpu.lowering.pack import Packer, weights_identity
from aicc.targets.cpu.lowering.program import build_program, find_refusals
from aicc.targets.cpu.lowering.toolchain import compile_library, compiler_version

_KV_TYPES = {"float32": "F32", "float16": "F16"}
SOURCE_FILE = "model.c"
_DECODERS_ONLY = "native code is made for decoders only so far"


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write ``model.c`` and the library made of it.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file, to which nothing was added yet.

    Raises:
        UnsupportedError: A node is no operation on rows; it is named.
    """
    refuse_operators(imported.graph, target)
    if imported.kind != "decoder":
        refused = refusals(imported, target)[0]
        raise UnsupportedError(
            f"{target.name} cannot run {refused.op} ({refused.node}): {refused.reason}.", "Compile for openvino:cpu."
        )
    started = time.perf_counter()
    program = build_program(imported)
    nodes = sum(1 for _ in imported.graph.graph.all_nodes())
    steps = fuse(program)
    packer = Packer(weights, weights_identity(program, imported.info.sha256))
    source = emit_model(program, steps, packer, imported.info.name, _KV_TYPES[kv_dtype(imported.graph, target)])
    Path(directory, SOURCE_FILE).write_text(source.text)
    library = compile_library(source.text, target.variant, directory)
    return LoweredVariant(
        files=[SOURCE_FILE, library],
        requires={"architecture": target.architecture, "instruction_sets": " ".join(target.instruction_sets)},
        producer={"ziglang": compiler_version()},
        coverage=full_coverage(imported.graph),
        passes=[PassRecord("steps of native code", nodes, len(steps), time.perf_counter() - started)],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph),
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Nodes that are no operations on rows, from shapes alone."""
    if imported.kind != "decoder":
        nodes = list(imported.graph.graph)
        name = (nodes[0].name or str(nodes[0].outputs[0].name)) if nodes else ""
        return [Refusal(name, nodes[0].op_type if nodes else "", _DECODERS_ONLY)]
    return find_refusals(imported)
