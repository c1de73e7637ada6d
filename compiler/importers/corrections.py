"""Where mobius 0.1.0 computes something else than the published model: put right here, or refused.

Found by comparing miniature models with transformers' own forward pass, which the tests repeat; a
newer mobius that fixes one of these makes the correction unnecessary, not wrong.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from aicc.runtime.errors import UnsupportedError

_EXACT_ROPE = ("default", "linear", "llama3", "yarn", "longrope")
_IGNORES_WINDOW = ("mistral", "qwen2", "qwen3", "phi3", "starcoder2")
_SHIFTED_POSITIONS = ("roberta", "xlm-roberta")


def refuse_inexact(config: Any, where: str) -> None:
    """Refuse options of a transformers config that mobius takes and computes differently.

    Raises:
        UnsupportedError: Names the option.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [entry.get("rope_type") for entry in [rope, *rope.values()] if isinstance(entry, dict)]
    inexact = [kind for kind in kinds if kind not in (*_EXACT_ROPE, None)]
    if inexact:
        raise UnsupportedError(f"{where}: positions scaled by {inexact[0]!r} are not supported; known: {_EXACT_ROPE}.")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedError(f"{where}: {config.model_type} with bidirectional attention is not supported.")
    if getattr(config, "is_decoder", False) and config.model_type in ("bert", *_SHIFTED_POSITIONS):
        raise UnsupportedError(f"{where}: {config.model_type} as a decoder is not supported.")


def correct_module(module: Any, config: Any) -> None:
    """Correct a model definition before its graph is built."""
    if config.model_type.startswith("gemma"):
        module.model.embed_tokens.embed_scale = math.sqrt(config.hidden_size)  # was rounded to float16 or two decimals
    if config.model_type == "gemma2":
        module.model._is_local = lambda layer: config.layer_types[layer] == "sliding_attention"  # was the other half
    if config.model_type == "gemma3_text":
        for layer in module.model.layers:
            layer.self_attn.scaling = config.query_pre_attn_scalar**-0.5  # was taken from head_dim


def correct_graph(model: ir.Model, config: Any, task: str) -> None:
    """Correct a graph after it is built."""
    if task == "feature-extraction":
        _mask_padding(model.graph)
        _count_by_scalars(model.graph)
    if config.model_type == "distilbert":
        for node in model.graph:
            if node.op_type == "LayerNormalization":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-12)  # fixed in transformers; was 1e-5


def context_length(config: Any, built_length: int) -> int:
    """Tokens the graph is exact for.

    Attention over a window is computed over everything instead; and LongRoPE turns by other angles
    as soon as any position of a step is beyond the original length, which keys in the cache, and
    other sequences in the step, know nothing of.
    """
    limits = [built_length]
    if config.model_type in _IGNORES_WINDOW:
        limits.append(getattr(config, "sliding_window", None) or built_length)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = getattr(config, "original_max_position_embeddings", None)
        limits.append(rope.get("original_max_position_embeddings") or original or built_length)
    return min(limits)


def position_offset(config: Any) -> int:
    """First row of the position table in use: RoBERTa counts from after its padding token's id."""
    return config.pad_token_id + 1 if config.model_type in _SHIFTED_POSITIONS else 0


def _mask_padding(graph: ir.Graph) -> None:
    """Make every Attention of an encoder see ``attention_mask`` as what it is: which tokens are there.

    mobius hands the int64 mask over as numbers to add to the scores, or not at all.
    """
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    if mask is None:
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        mask = ir.Value(name="attention_mask", type=ids.type, shape=ids.shape)
        graph.inputs.insert(1, mask)
    batch, sequence = mask.shape
    attentions = [node for node in graph if node.op_type == "Attention"]
    nodes: list[ir.Node] = []

    def emit(op: str, inputs: list[ir.Value], dtype: ir.DataType, shape: list[Any], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes or None)
        value = node.outputs[0]
        value.name, value.type, value.shape = f"attention_mask.{op.lower()}", ir.TensorType(dtype), ir.Shape(shape)
        nodes.append(node)
        return value

    def constant(name: str, numbers: list[int]) -> ir.Value:
        value = ir.Value(name=f"attention_mask.{name}", const_value=ir.tensor(numbers, ir.DataType.INT64))
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(numbers)])
        graph.register_initializer(value)
        return value

    present = emit("Cast", [mask], ir.DataType.BOOL, [batch, sequence], to=int(ir.DataType.BOOL))
    keys = emit("Unsqueeze", [present, constant("axes", [1, 2])], ir.DataType.BOOL, [batch, 1, 1, sequence])
    length = emit("Shape", [mask], ir.DataType.INT64, [1], start=1, end=2)
    target = emit("Concat", [constant("ones", [1, 1]), length, constant("one", [1])], ir.DataType.INT64, [4], axis=0)
    allowed = emit("Expand", [keys, target], ir.DataType.BOOL, [batch, 1, sequence, sequence])
    graph.insert_before(graph[0], nodes)
    for node in attentions:
        node.resize_inputs(max(4, len(node.inputs)))
        node.replace_input_with(3, allowed)


def _count_by_scalars(graph: ir.Graph) -> None:
    """Make the bounds of every Range the scalars ONNX wants: vectors of one number pass only while sizes are open."""
    for node in [node for node in graph if node.op_type == "Range"]:
        for place, bound in enumerate(node.inputs):
            if bound is None or (bound.shape is not None and len(bound.shape) == 0):
                continue
            squeeze = ir.node("Squeeze", [bound])
            squeeze.outputs[0].name = f"{node.outputs[0].name}.bound.{place}"
            squeeze.outputs[0].type, squeeze.outputs[0].shape = bound.type, ir.Shape([])
            graph.insert_before(node, squeeze)
            node.replace_input_with(place, squeeze.outputs[0])
