"""A graph that computes in float16."""

import numpy as np
from graph_text import graph, normal, run, text

from aicc.compiler.passes.half_floats import HalfFloats

MIXED = """(float[2, 3] x, float16[3, 3] w, int64[2] i) => (float[2, 3] y, int64[2] j) {
    wide = Cast <to = 1> (w)
    product = MatMul (x, wide)
    two = Constant <value_float = 2.0> ()
    y = Mul (product, two)
    j = Add (i, i)
}"""


def test_casts_to_float32_fall_away_and_constants_are_halves() -> None:
    model, step = graph(MIXED), HalfFloats()
    step(model)
    assert step.changed
    assert "Cast" not in text(model)
    assert "MatMul (x, w)" in text(model)
    assert {str(v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)} == {"FLOAT16", "INT64"}


def test_the_numbers_stay_those_of_half_precision() -> None:
    model = graph(MIXED)
    x, w, i = normal(2, 3), normal(3, 3, seed=1).astype(np.float16), np.array([1, 2])
    before = run(model, x=x, w=w, i=i)
    HalfFloats()(model)
    y, j = run(model, x=x.astype(np.float16), w=w, i=i)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, before[0], atol=0.01)
    np.testing.assert_array_equal(j, before[1])


def test_integers_and_doubles_stay_untouched() -> None:
    source = "(int64[2] i, double[2] d) => (double[2] y) {\n    c = Cast <to = 11> (i)\n    y = Add (c, d)\n}"
    model = graph(source)
    before = text(model)
    HalfFloats()(model)
    assert text(model) == before
