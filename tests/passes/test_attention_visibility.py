"""What each attention of a decoder may see is read off its mask, however the mask is written."""

import numpy as np
import onnx_ir as ir
import pytest
from graph_text import graph, text
from onnx.reference import ReferenceEvaluator

from aicc.compiler.passes.attention_mask import Visibility, attention_visibility
from aicc.runtime.errors import UnsupportedError

CONTEXT = 64
# Distance of each key from each query, [batch, query, key]: 0 is the query itself, negative is the future.
DISTANCE = """
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    ordinal = CumSum (attention_mask, one_scalar)
    keys = Sub (ordinal, one)
    key = Unsqueeze (keys, one)
    query = Unsqueeze (position_ids, two)
    distance = Sub (query, key)
    zero = Constant <value_int = 0> ()
    past = GreaterOrEqual (distance, zero)
"""
HEADS = "q_num_heads = 2, kv_num_heads = 2"


def decoder(mask: str, attributes: str = "", use: str = ", mask") -> ir.Model:
    """One attention whose mask ``[batch, 1, query, key]`` is computed from the decoder's inputs."""
    model = graph(
        f"""(float[b, s, 8] x, int64[b, t] attention_mask, int64[b, s] position_ids) => (float[b, s, 8] y) {{
            one_scalar = Constant <value_int = 1> ()
            {DISTANCE if mask else ""}
            {mask}
            y = Attention <{HEADS}{attributes}> (x, x, x{use if mask else ""})
        }}"""
    )
    model.graph[-1].name = "layers.0.attention"
    return model


def visibility(model: ir.Model, context: int = CONTEXT) -> Visibility:
    (found,) = attention_visibility(model, context).values()
    return found


CAUSAL = "mask = Unsqueeze (past, one)"
WINDOW = """
    reach = Constant <value_int = 5> ()
    near = Less (distance, reach)
    both = And (past, near)
    mask = Unsqueeze (both, one)
"""
ADDED = """
    hidden = Constant <value_float = -3.4028235e38> ()
    seen = Constant <value_float = 0.0> ()
    added = Where (past, seen, hidden)
    mask = Unsqueeze (added, one)
"""


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (decoder("", ", is_causal = 1"), 0),
        (decoder(CAUSAL), 0),
        (decoder(ADDED), 0),
        (decoder(WINDOW), 5),
        (decoder(WINDOW.replace("both", "only").replace("And (past, near)", "Identity (near)"), ", is_causal = 1"), 5),
    ],
    ids=["the attribute", "booleans", "numbers added to the scores", "a window", "a window and the attribute"],
)
def test_causal_masks_and_windows_are_recognised(model: ir.Model, window: int) -> None:
    assert visibility(model) == Visibility(window)


def test_the_graph_stays_untouched() -> None:
    model = decoder(WINDOW)
    before = text(model)
    attention_visibility(model, CONTEXT)
    assert text(model) == before


@pytest.mark.parametrize("mask", [CAUSAL, ADDED, WINDOW])
def test_what_was_read_off_is_the_mask_itself(mask: str) -> None:
    model, tokens = decoder(mask), 12
    window = visibility(model).window
    computed = next(value for node in model.graph for value in node.outputs if value.name == "mask")
    proto = ir.to_proto(
        ir.Model(ir.convenience.extract(model.graph, model.graph.inputs[1:], [computed]), ir_version=11)
    )
    ones, positions = np.ones((1, tokens), np.int64), np.arange(tokens)[None]
    (found,) = ReferenceEvaluator(proto).run(None, {"attention_mask": ones, "position_ids": positions})
    seen = found[0, 0] if found.dtype == bool else found[0, 0] == 0
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    assert np.array_equal(seen, (distance >= 0) & (distance < (window or tokens)))


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    assert visibility(decoder(WINDOW), context=5) == Visibility(0)


def test_a_context_shorter_than_what_is_looked_at_is_read_too() -> None:
    assert visibility(decoder(CAUSAL), context=2) == Visibility(0)


FUTURE = """
    future = Not (past)
    mask = Unsqueeze (future, one)
"""
FAR = """
    far = Cast <to = 1> (distance)
    added = Where (past, far, hidden)
"""
NEAR_MISSES = {
    "caps its attention scores": decoder(CAUSAL, ", softcap = 30.0"),
    "neither causal nor a causal window": decoder(FUTURE),
    "adds a bias": decoder(ADDED.replace("added = Where (past, seen, hidden)", FAR)),
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_anything_else_is_refused_by_node(reason: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"layers\.0\.attention.*{reason}") as refused:
        attention_visibility(NEAR_MISSES[reason], CONTEXT)
    assert refused.value.remedy
