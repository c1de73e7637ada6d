"""Rotary embedding in simple operators."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.decompose_rotary import DecomposeRotary

HEADS = """(float[1, 2, 5, 8] x, float[1, 5, 2] c, float[1, 5, 2] s) => (float[1, 2, 5, 8] y) {
    y = RotaryEmbedding <rotary_embedding_dim = 4> (x, c, s)
}"""
ROWS = """(float[1, 5, 16] x, float[9, 4] c, float[9, 4] s, int64[1, 5] p) => (float[1, 5, 16] y) {
    y = RotaryEmbedding <num_heads = 2> (x, c, s, p)
}"""


def test_halves_are_turned_and_the_rest_goes_by() -> None:
    model, step = graph(HEADS), DecomposeRotary()
    step(model)
    assert step.changed == 1
    assert text(model) == lines("""
        v0 = Constant <value_ints = [1]> ()
        v1 = Unsqueeze (c, v0)
        v2 = Constant <value_ints = [1]> ()
        v3 = Unsqueeze (s, v2)
        v4 = Constant <value_ints = [2, 2, 4]> ()
        v5, v6, v7 = Split <axis = -1> (x, v4)
        v8 = Mul (v5, v1)
        v9 = Mul (v6, v3)
        v10 = Sub (v8, v9)
        v11 = Mul (v5, v3)
        v12 = Mul (v6, v1)
        v13 = Add (v11, v12)
        y = Concat <axis = -1> (v10, v13, v7)
    """)


@pytest.mark.parametrize("source", [HEADS, ROWS], ids=["part of each head", "rows at positions"])
def test_the_numbers_stay_the_same(source: str) -> None:
    model = graph(source)
    inputs = {str(v.name): normal(*v.shape, seed=i) for i, v in enumerate(model.graph.inputs[:3])}
    inputs |= {"p": np.array([[4, 0, 8, 3, 3]])} if source == ROWS else {}
    (before,) = run(model, **inputs)
    DecomposeRotary()(model)
    np.testing.assert_allclose(run(model, **inputs)[0], before, rtol=1e-6)


def test_turned_neighbours_stay_untouched_and_it_says_why() -> None:
    model, step = graph(ROWS.replace("num_heads = 2", "num_heads = 2, interleaved = 1")), DecomposeRotary()
    before = text(model)
    step(model)
    assert (text(model), step.refused) == (before, {"y": "it turns neighbours, not halves"})
