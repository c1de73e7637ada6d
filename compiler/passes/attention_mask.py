"""Which keys each ``Attention`` may see, found by asking the graph.

Importers build the mask from ``attention_mask`` with whatever operators they like. Chips with a
paged or fused attention want two facts instead: is it causal, and how far back does it look? The
mask's subgraph is small, so it is evaluated on a full context of ones and the answer is read off
the result. This is exact for every way of writing a causal or sliding-window mask, and says so
when a mask is something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from aicc.runtime.errors import UnsupportedError

HIDDEN = -1e4  # an additive mask below this hides the key: exp of it is 0 in every float type
_ROWS = 4  # query positions that are looked at, the last ones of the context


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a query at position p sees: keys ``p - window + 1 … p``, or all up to p if window is 0."""

    window: int


def attention_visibility(model: ir.Model, context_length: int, *, caps: bool = False) -> dict[str, Visibility]:
    """Visibility of every ``Attention`` node of a decoder, by node name.

    Args:
        model: A decoder graph as importers give it.
        context_length: Tokens of the longest context; masks are probed there.
        caps: Whether the chip's kernel can cap scores (``softcap``).

    Raises:
        UnsupportedError: A mask is neither causal nor a causal window, or there is a score
            modification (soft-capping, unless ``caps``) besides it; names the node.
    """
    masks: dict[int, np.ndarray | None] = {}
    found = {}
    for node in model.graph:
        if node.op_type != "Attention":
            continue
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        key = id(mask)
        if key not in masks:
            masks[key] = None if mask is None else _probe(model, mask, context_length, node)
        if not caps and node.attributes.get_float("softcap", 0.0):
            raise UnsupportedError(
                f"node {node.name} caps its attention scores (softcap), which a paged attention kernel here cannot.",
                "Compile for a target that keeps the Attention operator, such as reference.",
            )
        found[node.name] = _read(node, masks[key], context_length)
    return found


def _probe(model: ir.Model, mask: ir.Value, context_length: int, node: ir.Node) -> np.ndarray:
    """The mask's value for the last rows of a full context, as booleans ``[rows, context]``."""
    sources = [v for v in model.graph.inputs if v.name in ("input_ids", "attention_mask", "position_ids")]
    subgraph = ir.convenience.extract(model.graph, sources, [mask])
    proto = ir.to_proto(ir.Model(subgraph, ir_version=model.ir_version))
    rows = min(_ROWS, context_length)
    past = context_length - rows
    feeds = {
        "input_ids": np.zeros((1, rows), np.int64),
        "attention_mask": np.ones((1, context_length), np.int64),
        "position_ids": np.arange(past, context_length, dtype=np.int64)[None],
    }
    used = {v.name for v in subgraph.inputs}
    (value,) = ReferenceEvaluator(proto).run(None, {k: v for k, v in feeds.items() if k in used})
    allowed = value if value.dtype == np.bool_ else value == 0
    heads = np.broadcast_to(allowed, (*allowed.shape[:-2], rows, context_length)).reshape(-1, rows, context_length)
    if (value.dtype != np.bool_ and ((value != 0) & (value > HIDDEN)).any()) or (heads != heads[0]).any():
        raise UnsupportedError(
            f"node {node.name} adds a bias to its attention scores, or masks its heads differently.",
            "Compile for a target that keeps the Attention operator, such as reference.",
        )
    return heads[0]


def _read(node: ir.Node, allowed: np.ndarray | None, context_length: int) -> Visibility:
    if allowed is None:
        allowed = np.ones((min(_ROWS, context_length), context_length), bool)
    rows = len(allowed)
    if node.attributes.get_int("is_causal", 0):
        allowed = allowed & np.tri(rows, context_length, context_length - rows, dtype=bool)
    windows = set()
    for row in range(rows):
        last = context_length - rows + row
        seen = np.flatnonzero(allowed[row])
        if len(seen) == 0 or seen[-1] != last or seen[0] + len(seen) - 1 != last:
            raise UnsupportedError(
                f"node {node.name} has an attention mask that is neither causal nor a causal window.",
                "Compile for a target that keeps the Attention operator, such as reference.",
            )
        windows.add(0 if seen[0] == 0 else len(seen))
    if len(windows) > 1:  # a window about as long as the context: the first row still sees everything
        windows.discard(0)
    if len(windows) != 1:
        raise UnsupportedError(
            f"node {node.name} has an attention window that varies by position.", "Compile for --target reference."
        )
    return Visibility(windows.pop())
