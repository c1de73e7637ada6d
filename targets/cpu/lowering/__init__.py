"""The compile half for processors: graph → row program → steps → C → machine code.

quantise.py   in the row program (aicc.compiler.rows), rows quantised before products
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
from aicc.compiler.rows import row_builder
from aicc.compiler.rows.fuse import fuse, simplify
from aicc.compiler.rows.program import Linear
from aicc.runtime.target import Target
from aicc.targets.cpu.lowering.emit import KV_TYPES, emit_model
from aicc.targets.cpu.lowering.formats import LANES, matrix_form
from aicc.targets.cpu.lowering.pack import Packer, weights_identity
from aicc.targets.cpu.lowering.quantise import quantise_inputs
from aicc.targets.cpu.lowering.toolchain import SOURCE, compile_library, producer


def prepare(target: Target) -> None:
    """Ask for the C compiler.

    Raises:
        MismatchError: There is none.
    """
    producer(target)


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
    program = row_builder(imported, target.family, LANES).build()
    nodes = sum(1 for _ in imported.graph.graph.all_nodes())
    activations = target.activations[0]
    simplify(program)
    # What base.h calls AICC_PROMPTS: activations of 8 bits, where none with more were asked for.
    quantised = any(isinstance(op, Linear) and matrix_form(op.matrix).quantised for op in program.ops)
    prompts = "amx_bf16" in target.instruction_sets and quantised and activations != "int16"
    quantise_inputs(program, activations, prompts)
    steps = fuse(program)
    packer = Packer(weights, weights_identity(program, imported.info.sha256))
    kv = kv_dtype(imported.graph, target)
    source = emit_model(program, steps, packer, imported.info.name, KV_TYPES[kv], prompts)
    Path(directory, SOURCE).write_text(source)
    library = compile_library(source, target, directory)
    return LoweredVariant(
        files=[SOURCE, library],
        requires={"architecture": target.architecture, "instruction_sets": " ".join(target.instruction_sets)},
        producer=producer(target),
        options={"activations": activations} | ({"kv_cache": kv} if program.generates else {}),
        coverage=full_coverage(imported.graph),
        passes=[PassRecord("steps of native code", nodes, len(steps), time.perf_counter() - started)],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Nodes that are no operations on rows, from shapes alone."""
    return row_builder(imported, target.family, LANES).refusals()
