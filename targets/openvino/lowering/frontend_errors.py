"""What OpenVINO's ONNX frontend says when it cannot convert a graph, as refused nodes with a reason."""

from __future__ import annotations

import re

import onnx_ir as ir

from aicc.compiler.lowering import Refusal

_UNKNOWN = re.compile(r"No conversion rule found for operations: ([\w., -]+)")
_FAILED = re.compile(r"^-- ([\w.]+)-\d+ with a message:\n(.*?)(?=^-- |^Summary:|\Z)", re.MULTILINE | re.DOTALL)
_NODE = re.compile(r"<Node\(\w+\): ([^>]*)>")
_TRACE = re.compile(r"^(Check |While validating |FrontEnd API |Exception from )")


def refused_nodes(model: ir.Model, text: str) -> list[Refusal]:
    """The nodes an error of the frontend is about.

    Args:
        model: The graph that was to be converted.
        text: The error, a C++ trace of many lines.

    Returns:
        Empty if the error is not about nodes.
    """
    found = []
    for operator, message in _FAILED.findall(text):
        node = _NODE.search(message)
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if not _TRACE.match(line)), "its conversion failed")
        found.append(Refusal(node[1] if node else "", operator, reason.rstrip(".")))
    unknown = _UNKNOWN.search(text)
    names = {re.sub(r"-\d+$", "", name.strip(" .")) for name in unknown[1].split(",")} if unknown else set()
    for node in model.graph.all_nodes():
        if (operator := f"{node.domain}.{node.op_type}".removeprefix(".")) in names:
            found.append(Refusal(node.name or str(node.outputs[0].name), operator, "OpenVINO has no conversion for it"))
    return found
