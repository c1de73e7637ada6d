"""Legalisation: what ``Target.op_rules`` says of a graph's operators is done to it, in order."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from aicc.compiler.optimize import run_pass
from aicc.compiler.passes.decompose_attention import DecomposeAttention
from aicc.compiler.passes.decompose_functions import DecomposeFunctions
from aicc.compiler.passes.decompose_rotary import DecomposeRotary
from aicc.compiler.passes.fold_constants import fold_shapes
from aicc.compiler.passes.static_shapes import StaticShapes
from aicc.compiler.report import PassRecord
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target

_OWN: dict[str, Callable[[], Callable[[ir.Model], object]]] = {
    "Attention": DecomposeAttention,
    "RotaryEmbedding": DecomposeRotary,
}


def legalise(model: ir.Model, target: Target) -> list[PassRecord]:
    """Decompose in place what the target's rules say.

    Args:
        model: Its values have shapes, fixed ones where the target wants them.
        target: Its ``op_rules`` name operators to ``decompose``.

    Raises:
        UnsupportedError: A node cannot be decomposed; it is named.
    """
    operators = [op for op, rule in target.op_rules.items() if rule == "decompose"]
    steps = [(f"decompose {op}", _OWN[op]()) for op in operators if op in _OWN]
    steps.append(("decompose functions", DecomposeFunctions([op for op in operators if op not in _OWN])))
    records = [run_pass(name, step, model) for name, step in steps]
    for record in records:
        for node, reason in record.refused.items():
            raise UnsupportedError(
                f"{target.name} runs {node} only in simpler operators, and it cannot be written so: {reason}.",
                "Compile for --target openvino:cpu.",
            )
    finish = StaticShapes({}) if target.shapes == "static" else fold_shapes
    records.append(run_pass("fold constants", finish, model))
    return records
