"""Operators that ONNX defines by others, in those."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.decompose_functions import DecomposeFunctions
from aicc.compiler.passes.fold_constants import fold_shapes

SOURCES = {
    "RMSNormalization": "y = RMSNormalization <epsilon = 0.01> (x, s)",
    "LayerNormalization": "y = LayerNormalization (x, s, b)",
    "Gelu": "y = Gelu (x)",
    "Gelu by tanh": 'y = Gelu <approximate = "tanh"> (x)',
    "Swish": "y = Swish (x)",
    "Swish of two": "a = Swish <alpha = 2.0> (x)\n y = Swish (a)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization <axes = [1]> (x)",
}


def _model(name: str):
    return graph(f"(float[2, 3, 8] x, float[8] s, float[8] b) => (float[2, 3, 8] y) {{ {SOURCES[name]} }}")


def test_a_definition_takes_the_place_of_the_node() -> None:
    model, step = _model("RMSNormalization"), DecomposeFunctions(["RMSNormalization"])
    step(model)
    fold_shapes(model)
    assert (step.changed, step.refused, dict(model.functions)) == (1, {}, {})
    assert text(model) == lines("""
        v0 = Mul (x, x)
        v1 = ReduceMean (v0, ReduceAxes)
        v2 = Add (v1, Epsilon)
        v3 = Sqrt (v2)
        v4 = Div (x, v3)
        y = Mul (v4, s)
    """)


@pytest.mark.parametrize("name", SOURCES)
def test_the_numbers_stay_the_same(name: str) -> None:
    model, step = _model(name), DecomposeFunctions([name.split(" ")[0]])
    inputs = {"x": normal(2, 3, 8), "s": normal(8, seed=1), "b": normal(8, seed=2)}
    (before,) = run(model, **inputs)
    step(model)
    fold_shapes(model)
    assert step.changed == SOURCES[name].count(" = " + name.split(" ")[0])
    np.testing.assert_allclose(run(model, **inputs)[0], before, rtol=1e-4, atol=1e-5)


def test_what_onnx_does_not_define_by_others_stays_untouched_and_it_says_why() -> None:
    model, step = graph("(float[2] x) => (float[2] y) { y = Sin (x) }"), DecomposeFunctions(["Sin"])
    step(model)
    assert text(model) == "y = Sin (x)"
    assert step.refused == {"y": "ONNX does not define it by other operators"}


def test_operators_nobody_asked_for_stay() -> None:
    model, step = _model("Gelu"), DecomposeFunctions(["Swish"])
    step(model)
    assert (text(model), step.changed) == ("y = Gelu (x)", 0)


def test_what_a_definition_is_made_of_is_decomposed_too() -> None:
    model = graph("(float[2, 3, 8] x) => (float[2, 3, 8] y) { y = Mish (x) }")
    step = DecomposeFunctions(["Mish", "Softplus"])
    (before,) = run(model, x=normal(2, 3, 8))
    step(model)
    assert not {node.op_type for node in model.graph} & {"Mish", "Softplus"}
    np.testing.assert_allclose(run(model, x=normal(2, 3, 8))[0], before, rtol=1e-4, atol=1e-5)
