"""A decoder's KV cache and masks as plain tensors that the host keeps, for chips without an attention of their own.

``Y, present_k, present_v = Attention(Q, K, V, mask, past_k, past_v)`` →
``Y = Attention(Q, Concat(past_k, K), Concat(past_v, V), attention_bias)``, all of rank 4, where

- ``past_key_values.<i>.key/value`` ``[batch, kv_heads, past, head_dim]`` stay inputs. They may be padded anywhere:
  keys were turned by their positions before they were stored, so only the mask knows where a key stands.
- ``present.<i>.key/value`` ``[batch, kv_heads, sequence, head_dim]`` have the new tokens alone, so a step moves
  what it adds across the boundary, not the whole cache.
- ``attention_bias`` ``[batch, 1, sequence, past + sequence]``, float32, is an input: 0 where a query sees a key,
  :data:`HIDDEN` elsewhere. Layers with a window have ``attention_bias.<window>``. The host knows who sees whom,
  and the integer arithmetic of masks is what chips run worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from aicc.compiler.importers import ImportedModel
from aicc.compiler.passes.attention_mask import Visibility, attention_visibility
from aicc.compiler.passes.static_shapes import SEQUENCE, StaticShapes
from aicc.runtime.errors import UnsupportedError
from aicc.targets.static_decoder import BIAS, Step


class ExplicitCache(InPlacePass):
    """Take cache and masks out of the attentions of a decoder.

    Args:
        visible: Of every ``Attention``, by node name.
    """

    def __init__(self, visible: Mapping[str, Visibility]) -> None:
        super().__init__()
        self.visible = visible
        self.changed = 0

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every attention with a past.

        Raises:
            UnsupportedError: Something else than an attention reads or makes a part of the cache.
        """
        for node in list(model.graph):
            if node.op_type == "Attention" and len(node.inputs) > 4 and node.inputs[4] is not None:
                self._visit(model.graph, node)
        RemoveUnusedNodesPass()(model)
        for value in [v for v in model.graph.inputs if not v.uses() and not v.is_graph_output()]:
            model.graph.inputs.remove(value)
        return PassResult(model, modified=bool(self.changed))

    def _visit(self, graph: ir.Graph, node: ir.Node) -> None:
        tape = ir.tape.Tape()
        parts, flat = list(node.inputs[:3]), len(node.inputs[0].shape) == 3
        if flat:
            heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
            parts = [_split_heads(tape, v, n) for v, n in zip(parts, (heads, kv_heads, kv_heads), strict=True)]
        query, *new = parts
        whole = [tape.op("Concat", [p, n], {"axis": 2}) for p, n in zip(node.inputs[4:6], new, strict=True)]
        bias = _bias(graph, self.visible[str(node.name)].window)
        kept = {name: node.attributes[name] for name in ("scale", "softcap") if name in node.attributes}
        result = tape.op("Attention", [query, *whole, bias], kept, name=node.name)
        if flat:
            turned = tape.op("Transpose", [result], {"perm": [0, 2, 1, 3]})
            result = tape.op("Reshape", [turned, tape.op("Constant", [], {"value_ints": [0, 0, -1]})])
        for value, present in zip(new, node.outputs[1:3], strict=True):
            _give_instead(graph, node, present, value)
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [node.outputs[0]], [result])
        self.changed += 1


def decoder_steps(imported: ImportedModel) -> Iterator[tuple[Step, ir.Model]]:
    """The graphs a decoder becomes: a chunk of a prompt and one token in each of its contexts, small ones first.

    Args:
        imported: A decoder of :func:`aicc.compiler.sizes.fix_sizes`; its graph stays as it is.

    Yields:
        ``prefill`` and ``decode``, with ``-<context>`` behind them where there are several contexts, and the graph
        of each. A context of a few tokens has no chunk.

    Raises:
        UnsupportedError: As :func:`specialise_decoder`.
    """
    assert imported.llm is not None
    longest = imported.llm.context_length
    contexts = imported.contexts or (longest,)
    for context in contexts:
        suffix = f"-{context}" if len(contexts) > 1 else ""
        for tokens in dict.fromkeys((max(min(SEQUENCE, context // 2), 1), 1)):
            step = Step(("decode" if tokens == 1 else "prefill") + suffix, tokens, context)
            yield step, specialise_decoder(imported.graph, longest, tokens, context)


def mask_inputs(model: ir.Model) -> list[str]:
    """Names of the inputs that say who sees whom, of a graph of :func:`specialise_decoder`."""
    return sorted(str(value.name) for value in model.graph.inputs if str(value.name).startswith(BIAS))


def specialise_decoder(model: ir.Model, context_length: int, tokens: int, context: int) -> ir.Model:
    """A static graph of one step of a decoder for one sequence; the given graph stays as it is.

    Args:
        model: As importers give it.
        context_length: Tokens of the longest context; windows are told apart there.
        tokens: New tokens of a step: a chunk of a prompt, or 1.
        context: Cached and new tokens together.

    Returns:
        A graph with inputs ``input_ids [1, tokens]``, ``position_ids [1, tokens]`` (if it uses them) and what
        this module says of cache and mask, with ``past = context - tokens``; outputs ``logits``
        ``[1, tokens, vocab]`` and ``present.…``.

    Raises:
        UnsupportedError: An attention's mask is none we know, or a tensor has no fixed shape; names the node.
    """
    visible = attention_visibility(model, context_length, caps=True)
    copy = model.clone()
    ExplicitCache(visible)(copy)
    shapes = {}
    for value in copy.graph.inputs:
        name = str(value.name)
        if name in ("input_ids", "position_ids"):
            shapes[name] = (1, tokens)
        elif name.startswith(BIAS):
            shapes[name] = (1, 1, tokens, context)
        elif name.startswith("past_key_values."):
            shapes[name] = (1, int(value.shape[1]), context - tokens, int(value.shape[3]))
        else:
            user = value.uses()[0].node
            raise UnsupportedError(
                f"{user.op_type} ({user.name}) reads the decoder's input {name}, which a graph of fixed shapes lacks.",
                "Compile for --target openvino:cpu.",
            )
    StaticShapes(shapes)(copy)
    return copy


def _split_heads(tape: ir.tape.Tape, value: ir.Value, heads: int) -> ir.Value:
    """``[batch, sequence, heads · size]`` → ``[batch, heads, sequence, size]``."""
    split = tape.op("Reshape", [value, tape.op("Constant", [], {"value_ints": [0, 0, heads, -1]})])
    return tape.op("Transpose", [split], {"perm": [0, 2, 1, 3]}, output=ir.Value(type=value.type))


def _bias(graph: ir.Graph, window: int) -> ir.Value:
    """The input that says who sees whom in a window, made when it is first asked for."""
    name = f"{BIAS}.{window}" if window else BIAS
    for value in graph.inputs:
        if value.name == name:
            return value
    shape = ir.Shape(["batch", 1, "sequence", "total"])
    graph.inputs.append(ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape))
    return graph.inputs[-1]


def _give_instead(graph: ir.Graph, node: ir.Node, present: ir.Value, new: ir.Value) -> None:
    """Let an output of the graph be the new rows instead of the whole cache, which nothing else may read."""
    if present.uses() or not present.is_graph_output() or new.is_graph_output():
        raise UnsupportedError(
            f"the keys or values of {node.op_type} ({node.name}) are used by other nodes too.",
            "Compile for --target openvino:cpu.",
        )
    present.name, new.name = None, present.name
    graph.outputs[graph.outputs.index(present)] = new
