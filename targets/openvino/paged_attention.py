"""The stored graph of a decoder, made one that runs over paged KV memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aicc.runtime.errors import IntegrityError
from aicc.targets.openvino.layout import STAND_IN, AttentionLayer

if TYPE_CHECKING:
    import openvino as ov


def with_paged_attention(model: ov.Model, layers: tuple[AttentionLayer, ...]) -> ov.Model:
    """Replace each attention stand-in by the paged-attention operator, which has no stored form.

    Args:
        model: The stored graph; it is given up.
        layers: What ``decoder.json`` says of each attention.

    Raises:
        IntegrityError: They are not the attentions of the graph.
    """
    import openvino as ov
    from openvino import opset13 as op
    from openvino.op import _PagedAttentionExtension as PagedAttention

    nodes = {n.get_friendly_name(): n for n in model.get_ops() if n.get_type_name() == "VariadicSplit"}
    given = {p.get_friendly_name(): p for p in model.get_parameters()}

    def parameter(name: str, shape: list[int], dtype: ov.Type = ov.Type.i32) -> ov.op.Parameter:
        if name in given:  # the rest of the graph uses it too
            return given[name]
        made = op.parameter(shape, dtype, name=name)
        made.output(0).set_names({name})
        return made

    def empty(dtype: type, shape: tuple[int, ...] = (0,)) -> ov.Output:
        return op.constant(np.zeros(shape, dtype)).output(0)

    tables = [parameter(n, [-1]) for n in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")]
    longest = parameter("max_context_len", [])
    no_int, no_float, zero = empty(np.int32), empty(np.float32), op.constant(np.int32(0)).output(0)
    # After the arguments every model uses come options none of ours does: score aggregation, cache
    # rotation (3), sparse attention (3), sinks, cache eviction (4), token types, query bias (2).
    unused = [no_int, no_int, no_int, no_float, no_float, zero, zero, empty(np.float32, (0, 0, 0, 0))]
    unused += [zero, no_int, no_int, no_int, no_int, empty(np.uint8), no_int]
    caches: list[ov.op.Parameter] = []
    for index, layer in enumerate(layers):
        stand_in = nodes.get(STAND_IN.format(index))
        parts = stand_in.input_value(0).get_node().input_values() if stand_in is not None else []
        if stand_in is None or len(parts) != 3:
            raise IntegrityError(f"the stored graph has no {STAND_IN.format(index)}.", "Compile the model again.")
        _check_heads(index, layer, parts)
        pair = [parameter(f"{kind}_cache.{index}", [-1] * 4, ov.Type.dynamic) for kind in ("key", "value")]
        caches += pair
        arguments = [*parts, *(p.output(0) for p in pair), *(t.output(0) for t in tables)]
        arguments += [
            op.constant(np.float32(layer.scale)).output(0),
            op.constant(np.int32(layer.window)).output(0),
        ]
        slopes = op.constant(np.array(layer.slopes, np.float32)).output(0) if layer.slopes else no_float
        attention = PagedAttention([*arguments, slopes, longest.output(0), *unused])
        facts = attention.get_rt_info()
        facts["num_k_heads"] = facts["num_v_heads"] = layer.kv_heads
        facts["k_head_size"] = facts["v_head_size"] = layer.head_size
        for target in stand_in.output(0).get_target_inputs():
            target.replace_source_output(attention.output(0))
    new = [p for p in (*tables, longest, *caches) if p.get_friendly_name() not in given]
    return ov.Model(model.get_results(), [*given.values(), *new], "decoder")


def _check_heads(index: int, layer: AttentionLayer, parts: list[ov.Output]) -> None:
    """Refuse heads that do not divide the values there are: the operator computes addresses with them."""
    query, key, value = ([*part.get_partial_shape()] for part in parts)
    width = layer.kv_heads * layer.head_size
    widths = [dims[-1].get_length() if len(dims) == 2 and dims[-1].is_static else 0 for dims in (query, key, value)]
    fits = widths[1:] == [width, width] and widths[0] > 0 and widths[0] % width == 0
    if not fits or (layer.slopes and len(layer.slopes) * layer.head_size != widths[0]):
        raise IntegrityError(
            f"{STAND_IN.format(index)} of the stored graph takes {', '.join(map(str, widths))} values a token, "
            f"which are no {layer.kv_heads} heads of {layer.head_size} with {len(layer.slopes)} slopes.",
            "Compile the model again.",
        )
