"""The compile half for processors: graph → row program → steps → C → machine code.

program.py    the graph as operations on rows of tokens; where they begin and end: decoder.py, encoder.py
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
from aicc.runtime.target import Target
from aicc.targets.cpu.lowering.decoder import DecoderBuilder
from aicc.targets.cpu.lowering.emit import KV_TYPES, emit_model
from aicc.targets.cpu.lowering.encoder import EncoderBuilder
from aicc.targets.cpu.lowering.fuse import fuse
from aicc.targets.cpu.lowering.pack import Packer, weights_identity
from aicc.targets.cpu.lowering.program import Builder
from aicc.targets.cpu.lowering.toolchain import compile_library, producer

SOURCE_FILE = "model.c"


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
    started = time.perf_counter()
    program = _builder(imported).build()
    nodes = sum(1 for _ in imported.graph.graph.all_nodes())
    activations = target.activations[0]
    steps = fuse(program, activations)
    packer = Packer(weights, weights_identity(program, imported.info.sha256))
    kv = kv_dtype(imported.graph, target)
    source = emit_model(program, steps, packer, imported.info.name, KV_TYPES[kv])
    Path(directory, SOURCE_FILE).write_text(source)
    library = compile_library(source, target, directory)
    return LoweredVariant(
        files=[SOURCE_FILE, library],
        requires={"architecture": target.architecture, "instruction_sets": " ".join(target.instruction_sets)},
        producer=producer(target),
        options={"activations": activations} | ({"kv_cache": kv} if program.generates else {}),
        coverage=full_coverage(imported.graph),
        passes=[PassRecord("steps of native code", nodes, len(steps), time.perf_counter() - started)],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Nodes that are no operations on rows, from shapes alone."""
    return _builder(imported).refusals()


def _builder(imported: ImportedModel) -> Builder:
    return DecoderBuilder(imported) if imported.kind == "decoder" else EncoderBuilder(imported)
