"""What a family says of a graph when it takes all of it: coverage, refusals, bytes per token."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from aicc.compiler.report import OpCoverage
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target

# Between a stored weight and the operator that uses its values.
_PREPARES = {"Add", "Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}


def refuse_operators(model: ir.Model, target: Target) -> None:
    """Refuse the graph if the target's rules refuse an operator in it.

    Raises:
        UnsupportedError: Names the first nodes.
    """
    refused = [node for node in model.graph.all_nodes() if target.op_rules.get(node.op_type) == "refuse"]
    if refused:
        named = ", ".join(f"{node.op_type} ({node.name or node.outputs[0].name})" for node in refused[:5])
        raise UnsupportedError(
            f"{target.name} cannot run {len(refused)} node(s) of this graph: {named}.", "Compile for another target."
        )


def full_coverage(model: ir.Model) -> list[OpCoverage]:
    """Every node delegated to the chip, counted by operator, subgraphs included."""
    counts = Counter(f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.all_nodes())
    return [OpCoverage(op, delegated=count) for op, count in sorted(counts.items())]


def weight_bytes_per_token(model: ir.Model) -> int:
    """Bytes of weights read to decode one token: all of them, but one row of a table that is only looked up."""
    total = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.shape:
            rows = 1 if _is_multiplied(value) else int(tensor.shape[0])
            total += tensor.nbytes // max(rows, 1)
    return total


def _is_multiplied(value: ir.Value) -> bool:
    """Whether more than a gather of rows uses a weight."""
    users = [use.node for use in value.uses()]
    prepared = [node for node in users if node.op_type in _PREPARES]
    used = any(node.op_type != "Gather" and node.op_type not in _PREPARES for node in users)
    return used or any(_is_multiplied(node.outputs[0]) for node in prepared)
