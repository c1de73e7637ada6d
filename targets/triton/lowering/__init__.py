"""The compile half: graph → row program → launches → binaries for one chip, and weights for all of them.

order.py      columns of heads, so that pairs which are rotated are neighbours
pack.py       weights in the kernels' layout
groups.py     which operations make a launch
chain.py      operations as constant programs of kernels
slots.py      where values are between launches
launches.py   the plan
binaries.py   kernels compiled, and what they take of the chip (resources.py)
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from aicc.compiler.coverage import full_coverage, refuse_operators, weight_bytes_per_token
from aicc.compiler.importers import ImportedModel
from aicc.compiler.lowering import LoweredVariant, Refusal, WeightStore
from aicc.compiler.report import PassRecord
from aicc.compiler.rows import program as rows
from aicc.compiler.rows import row_builder
from aicc.compiler.rows.fuse import fuse, simplify, uses
from aicc.compiler.rows.program import Program
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.triton.lowering.binaries import CHIPS, Binaries, producer
from aicc.targets.triton.lowering.groups import groups
from aicc.targets.triton.lowering.launches import Planner
from aicc.targets.triton.lowering.order import head_orders
from aicc.targets.triton.lowering.pack import Packer, matrix_form
from aicc.targets.triton.plan import PLAN_FILE, Plan

_NOT_DECODER = "the family runs decoders, not models of tensors"


def lower(imported: ImportedModel, target: Target, directory: Path, weights: WeightStore) -> LoweredVariant:
    """Write ``plan.json`` and the binaries it launches.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        target: One of this family's targets.
        directory: Where the variant's files go.
        weights: The artifact's weights file, to which nothing was added but by this family.

    Raises:
        UnsupportedError: There is no kernel for a node; it is named.
    """
    refuse_operators(imported.graph, target)
    if imported.kind != "decoder":
        raise UnsupportedError(f"{_NOT_DECODER}.", "Compile for another target, such as webgpu or reference.")
    started = time.perf_counter()
    program = row_builder(imported, target.family, 1).build()
    nodes = sum(1 for _ in imported.graph.graph.all_nodes())
    binaries = Binaries(CHIPS[target.variant], directory)
    plan = make_plan(program, binaries, Packer(weights))
    Path(directory, PLAN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1))
    launches = len(plan.body[0].launches) + len(plan.head[0].launches)
    return LoweredVariant(
        files=[PLAN_FILE, *(kernel.file for kernel in binaries.kernels)],
        requires={"architecture": target.variant},
        producer=producer(),
        options={"kv_cache": "float16"},
        coverage=full_coverage(imported.graph),
        passes=[PassRecord("launches to decode a token", nodes, launches, time.perf_counter() - started)],
        weight_bytes_per_token=weight_bytes_per_token(imported.graph),
        kernels=binaries.records,
    )


def make_plan(program: Program, binaries: Binaries, packer: Packer) -> Plan:
    """The plan of a row program; its kernels are compiled and its weights packed.

    Args:
        program: Of a decoder, as it was built; it is changed.
        binaries: Compiles for a chip.
        packer: Packs.
    """
    simplify(program)
    steps = fuse(program)
    return Planner(program, steps, binaries, packer, _compute_type(program)).plan()


def refusals(imported: ImportedModel, target: Target) -> list[Refusal]:
    """What would be refused, from shapes alone."""
    if imported.kind != "decoder":
        return [Refusal("", "", _NOT_DECODER)]
    builder = row_builder(imported, target.family, 1)
    if found := builder.refusals():
        return found
    program = builder.program
    simplify(program)
    steps = fuse(program)
    try:
        head_orders(program)
        for most in (1, 2):
            groups(steps, uses(program), most)
    except UnsupportedError as error:
        return [Refusal("", "", error.message.rstrip("."))]
    return []


def _compute_type(program: Program) -> str:
    """What products multiply: float16 where weights are, for they fit; bfloat16 has the range for all others."""
    kinds = {matrix_form(op.matrix).dtype for op in program.ops if isinstance(op, rows.Linear)}
    return "fp16" if "fp16" in kinds else "bf16"
