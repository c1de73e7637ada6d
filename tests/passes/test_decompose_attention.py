"""Attention in simple operators."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.decompose_attention import DecomposeAttention

ROWS = """(float[1, 5, 8] q, float[1, 7, 4] k, float[1, 7, 4] v{more}) => (float[1, 5, 8] y) {{
    y = Attention <q_num_heads = {heads}, kv_num_heads = {kv_heads}{extra}> (q, k, v{use})
}}"""
HEADS = """(float[1, 2, 5, 4] q, float[1, 2, 7, 4] k, float[1, 2, 7, 4] v, float[1, 1, 5, 7] m)
=> (float[1, 2, 5, 4] y) {
    y = Attention (q, k, v, m)
}"""


def _rows(extra: str = "", more: str = "", use: str = "", heads: int = 2, kv_heads: int = 1) -> str:
    return ROWS.format(extra=extra, more=more, use=use, heads=heads, kv_heads=kv_heads)


def test_it_becomes_products_a_sum_and_a_softmax() -> None:
    model, step = graph(HEADS), DecomposeAttention()
    step(model)
    assert step.changed == 1
    assert text(model).replace("Tensor<FLOAT,[]>(array(0.5, dtype=float32), name=None)", "0.5") == lines("""
        v0 = Constant <value = 0.5> ()
        v1 = Mul (q, v0)
        v2 = Transpose <perm = [0, 1, 3, 2]> (k)
        v3 = MatMul (v1, v2)
        v4 = Add (v3, m)
        v5 = Softmax <axis = -1> (v4)
        y = MatMul (v5, v)
    """)


@pytest.mark.parametrize(
    ("source", "mask"),
    [
        (HEADS, np.where(np.tri(5, 7, 2), 0, -1e4).astype(np.float32)[None, None]),
        (_rows(), None),
        (_rows(", is_causal = 1"), None),
        (_rows(", softcap = 2.0, scale = 0.7"), None),
        (_rows(more=", bool[1, 1, 5, 7] m", use=", m"), np.tri(5, 7, 2, dtype=bool)[None, None]),
        (_rows(more=", float[5, 7] m", use=", m"), normal(5, 7, seed=3)),
        (_rows(heads=4, kv_heads=2), None),
    ],
)
def test_the_numbers_stay_the_same(source: str, mask: np.ndarray | None) -> None:
    model = graph(source)
    inputs = {str(v.name): normal(*v.shape, seed=i) for i, v in enumerate(model.graph.inputs[:3])}
    inputs |= {} if mask is None else {"m": mask}
    (before,) = run(model, **inputs)
    step = DecomposeAttention()
    step(model)
    assert (step.changed, step.refused) == (1, {})
    np.testing.assert_allclose(run(model, **inputs)[0], before, rtol=1e-4, atol=1e-5)


PAST = """(float[1, 5, 8] q, float[1, 2, 3, 4] p) => (float[1, 5, 8] y) {
    y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, q, , p, p)
}"""
NEAR_MISSES = {
    "it has keys and values of earlier tokens; take them out first": PAST,
    "the width of its queries, keys or values is not known": _rows().replace("float[1, 5, 8] q", "float[1, 5, w] q"),
    "it is causal, and how many tokens there are is not known": _rows(", is_causal = 1").replace("5, 8] q", "s, 8] q"),
    "its keys, values or scores are used by other nodes too": _rows()
    .replace("=> (float[1, 5, 8] y)", "=> (float[1, 5, 8] y, float[1, 1, 7, 4] present)")
    .replace("y = Att", "y, present = Att"),
}  # fmt: skip


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_a_near_miss_stays_untouched_and_says_why(reason: str) -> None:
    model, step = graph(NEAR_MISSES[reason]), DecomposeAttention()
    before = text(model)
    step(model)
    assert (text(model), step.changed, step.refused) == (before, 0, {"y": reason})
