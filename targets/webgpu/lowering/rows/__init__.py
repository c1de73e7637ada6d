"""Decoders and encoders of any number of tokens: graph → row program → steps → kernels in WGSL.

forms.py        weight matrices as kernels read them
expressions.py  what a step computes beside products and attention
kernels.py      the kernels of a step; their templates are in ../wgsl/
assemble.py     the launch plan
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from aicc.compiler.coverage import full_coverage, weight_bytes_per_token
from aicc.compiler.facts import kv_dtype
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.report import PassRecord
from aicc.compiler.rows import row_builder
from aicc.compiler.rows.fuse import fuse, simplify
from aicc.runtime.target import Target
from aicc.targets.webgpu.lowering.rows.assemble import Assembler
from aicc.targets.webgpu.plan import PLAN_FILE

_HEAD_MULTIPLE = 4  # columns of a head: attention reads them in pairs, products write fours


def lower_rows(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write the plan and its kernels.

    Args:
        imported: The optimised and quantised graph of a decoder or an encoder; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file.

    Raises:
        UnsupportedError: A node is no operation on rows; it is named.
    """
    started = time.perf_counter()
    program = row_builder(imported, target.family, _HEAD_MULTIPLE).build()
    nodes = sum(1 for _ in imported.graph.graph.all_nodes())
    simplify(program)
    steps = fuse(program)
    kv = kv_dtype(imported.graph, target) if program.generates else "float32"
    plan, sources = Assembler(program, kv, weights).plan(steps)
    for name, text in sources.items():
        Path(directory, f"{name}.wgsl").write_text(text)
    Path(directory, PLAN_FILE).write_bytes(msgspec.json.encode(plan))
    return LoweredVariant(
        files=[PLAN_FILE, *(f"{name}.wgsl" for name in sources)],
        requires={name: str(least) for name, least in plan.limits.items()},
        options={"kv_cache": kv} if program.generates else {},
        coverage=full_coverage(imported.graph),
        passes=[PassRecord("kernels in WGSL", nodes, len(plan.steps), time.perf_counter() - started)],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph) if imported.llm else 0,
    )


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """Nodes that are no operations on rows, from shapes alone."""
    return row_builder(imported, target.family, _HEAD_MULTIPLE).refusals()
