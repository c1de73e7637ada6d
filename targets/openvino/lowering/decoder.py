"""A decoder's signature, from the portable one to flat tokens over paged memory."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op

from aicc.runtime.errors import UnsupportedError

# Operators that may stand between the output projection and the logits (scaling, soft-capping).
_ELEMENTWISE = ("Multiply", "Divide", "Tanh", "Add", "Convert")
# Cheap operators that conversions make again for each use of a value, such as a layer's cosines and sines.
_SHAREABLE = ("Concat", "Reshape", "Unsqueeze")


def flatten_tokens(model: ov.Model) -> ov.Model:
    """The decoder over flat tokens: inputs ``input_ids [T]``, ``position_ids [T]``, ``logit_rows [L]``.

    Tokens become batch rows of length one, so that everything between attentions is per token.
    Past and present caches and the attention mask are dropped (the attention stand-ins replace
    them), and only the rows asked for reach the output projection.

    Returns:
        A model with one result, ``logits [L, vocab]``.
    """
    inputs = {p.output(0).get_any_name(): p for p in model.get_parameters()}
    kept = [p for p in model.get_parameters() if p.get_friendly_name().startswith("weight:")]
    for name in ("input_ids", "position_ids"):
        flat = _parameter(name, [-1], ov.Type.i64)
        rows = op.unsqueeze(flat, op.constant(np.int64(1)))
        for target in inputs[name].output(0).get_target_inputs() if name in inputs else ():
            target.replace_source_output(rows.output(0))
        kept.append(flat)
    logits = next(r.input_value(0) for r in model.get_results() if "logits" in r.input_value(0).get_names())
    product = _output_projection(logits)
    wanted = _parameter("logit_rows", [-1], ov.Type.i32)
    kept.append(wanted)
    hidden = op.gather(product.input_value(0), wanted, op.constant(np.int64(0)))
    product.input(0).replace_source_output(hidden.output(0))
    vocab = logits.get_partial_shape()[-1].get_length()
    rows = op.reshape(logits, op.constant(np.array([-1, vocab])), False)
    rows.output(0).set_names({"logits"})
    logits.set_names(logits.get_names() - {"logits"})
    flat_model = ov.Model([op.result(rows)], kept, "decoder")
    flat_model.validate_nodes_and_infer_types()
    return flat_model


def share_equal_nodes(model: ov.Model) -> None:
    """Let equal nodes be one, and drop a reshape of a reshape: every pass of a plugin walks all nodes at load."""
    seen: dict[tuple[str, ...], ov.Node] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant" and node.get_byte_size() <= 256:
            key = (str(node.get_element_type()), str(node.get_output_partial_shape(0)), node.data.tobytes().hex())
        elif kind in _SHAREABLE:
            if kind == "Reshape" and not node.get_attributes()["special_zero"]:
                _skip_reshape(node)
            inputs = (f"{i.get_node().get_name()}:{i.get_index()}" for i in node.input_values())
            key = (kind, str(node.get_attributes()), *inputs)
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(first.output(0))


def _skip_reshape(node: ov.Node) -> None:
    before = node.input_value(0).get_node()
    if before.get_type_name() == "Reshape":
        node.input(0).replace_source_output(before.input_value(0))


def _parameter(name: str, shape: list[int], dtype: ov.Type) -> ov.op.Parameter:
    parameter = op.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _output_projection(logits: ov.Output) -> ov.Node:
    node = logits.get_node()
    while node.get_type_name() in _ELEMENTWISE:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise UnsupportedError(
            f"the logits come from {node.get_friendly_name()} ({node.get_type_name()}), not from an output projection.",
            "A decoder ends in a MatMul, with at most scaling and capping after it.",
        )
    return node
