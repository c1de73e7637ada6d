"""Cache and masks leave a decoder's attentions and become tensors of the host."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.attention_mask import Visibility
from aicc.compiler.passes.explicit_cache import ExplicitCache
from aicc.runtime.errors import UnsupportedError
from aicc.targets.static_decoder import HIDDEN

DECODER = """
    (float[1, s, 8] x, float[1, s, 4] k, bool[1, 1, s, t] mask,
     float[1, 1, p, 4] past_key, float[1, 1, p, 4] past_value)
    => (float[1, s, 8] y, float[1, 1, t, 4] present_key, float[1, 1, t, 4] present_value) {
        y, present_key, present_value = Attention <q_num_heads = 2, kv_num_heads = 1, is_causal = 1, scale = 0.5>
            (x, k, k, mask, past_key, past_value)
    }
"""


def _decoder(source: str = DECODER):
    model = graph(source)
    model.graph[-1].name = "attend"
    return model


def test_past_and_mask_are_operators_and_inputs_and_only_new_rows_are_given() -> None:
    model, step = _decoder(), ExplicitCache({"attend": Visibility(0)})
    step(model)
    assert step.changed == 1
    assert [value.name for value in model.graph.inputs] == [
        "x", "k", "past_key", "past_value", "attention_bias",
    ]  # fmt: skip
    assert [value.name for value in model.graph.outputs] == ["y", "present_key", "present_value"]
    assert text(model) == lines("""
        v0 = Constant <value_ints = [0, 0, 2, -1]> ()
        v1 = Reshape (x, v0)
        v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        v3 = Constant <value_ints = [0, 0, 1, -1]> ()
        v4 = Reshape (k, v3)
        present_key = Transpose <perm = [0, 2, 1, 3]> (v4)
        v5 = Constant <value_ints = [0, 0, 1, -1]> ()
        v6 = Reshape (k, v5)
        present_value = Transpose <perm = [0, 2, 1, 3]> (v6)
        v7 = Concat <axis = 2> (past_key, present_key)
        v8 = Concat <axis = 2> (past_value, present_value)
        v9 = Attention <scale = 0.5> (v2, v7, v8, attention_bias)
        v10 = Transpose <perm = [0, 2, 1, 3]> (v9)
        v11 = Constant <value_ints = [0, 0, -1]> ()
        y = Reshape (v10, v11)
    """)


def test_the_numbers_stay_the_same_when_the_bias_hides_what_the_mask_hid() -> None:
    inputs = {
        "x": normal(1, 3, 8),
        "k": normal(1, 3, 4, seed=1),
        "past_key": normal(1, 1, 5, 4, seed=2),
        "past_value": normal(1, 1, 5, 4, seed=3),
    }
    mask = np.arange(8) >= 2
    before = run(_decoder(), **inputs, mask=np.broadcast_to(mask, (1, 1, 3, 8)))
    model = _decoder()
    ExplicitCache({"attend": Visibility(0)})(model)
    bias = np.where(mask & np.tri(3, 8, 5, dtype=bool), 0, HIDDEN).astype(np.float32)
    after = run(model, **inputs, attention_bias=bias[None, None])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5, atol=1e-6)
    for new, whole in zip(after[1:], before[1:], strict=True):
        np.testing.assert_array_equal(new, whole[:, :, 5:])


def test_layers_of_one_window_share_a_bias_that_has_its_name() -> None:
    model = _decoder()
    ExplicitCache({"attend": Visibility(16)})(model)
    assert model.graph.inputs[-1].name == "attention_bias.16"


def test_a_cache_that_something_else_reads_is_refused_by_node() -> None:
    source = DECODER.replace("float[1, 1, t, 4] present_value)", "float[1, 1, t, 4] twice)").replace(
        "\n    }", "\n        twice = Add (present_value, present_value)\n    }"
    )
    model = graph(source)
    model.graph[0].name = "attend"
    with pytest.raises(UnsupportedError, match=r"Attention \(attend\)"):
        ExplicitCache({"attend": Visibility(0)})(model)


def test_an_attention_without_a_past_stays_untouched() -> None:
    model = graph(
        "(float[1, 3, 8] x) => (float[1, 3, 8] y) { y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x) }"
    )
    before = text(model)
    step = ExplicitCache({})
    step(model)
    assert (text(model), step.changed) == (before, 0)
