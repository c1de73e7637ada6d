"""What a family says of a graph when it takes all of it: coverage, refusals, bytes per token."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from aicc.compiler.lowering import Refusal
from aicc.compiler.report import OpCoverage
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target

_DOMAINS = ("", "ai.onnx", "com.microsoft")
# Between a stored weight and the operator that uses its values.
PREPARES = {"Add", "Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}


def refused_operators(model: ir.Model, target: Target) -> list[Refusal]:
    """Nodes the target's rules refuse, and nodes of domains nothing defines."""
    defined = {key[:2] for key in model.functions}
    found = []
    for node in model.graph.all_nodes():
        operator = f"{node.domain}.{node.op_type}".removeprefix(".")
        name = node.name or str(node.outputs[0].name)
        if target.op_rules.get(node.op_type) == "refuse":
            found.append(Refusal(name, operator, f"{target.name} has no kernel for it"))
        elif node.domain not in (*_DOMAINS, *target.graph_domains) and (node.domain, node.op_type) not in defined:
            found.append(Refusal(name, operator, f"nothing defines the operators of {node.domain}"))
    return found


def refuse_operators(model: ir.Model, target: Target) -> None:
    """Refuse the graph if there is an operator in it that cannot be run.

    Raises:
        UnsupportedError: Names the first nodes.
    """
    refuse(refused_operators(model, target), target, "Compile for another target.")


def refuse(refused: list[Refusal], target: Target, remedy: str) -> None:
    """Turn what a target cannot run into an error, if there is any.

    Raises:
        UnsupportedError: Names the first nodes, or says what is wrong with the whole graph.
    """
    if whole := next((each for each in refused if not each.node), None):
        raise UnsupportedError(f"{whole.reason}.", whole.remedy or remedy)
    if refused:
        named = ", ".join(f"{each.op} ({each.node}): {each.reason}" for each in refused[:5])
        raise UnsupportedError(f"{target.name} cannot run {len(refused)} node(s) of this graph: {named}.", remedy)


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
    prepared = [node for node in users if node.op_type in PREPARES]
    used = any(node.op_type != "Gather" and node.op_type not in PREPARES for node in users)
    return used or any(_is_multiplied(node.outputs[0]) for node in prepared)
