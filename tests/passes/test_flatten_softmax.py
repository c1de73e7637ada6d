"""Softmax before opset 13 is over all axes from its own on; the pass writes that out."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.flatten_softmax import FlattenSoftmax

SOFTMAX = "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }"


def _softmax(x: np.ndarray) -> np.ndarray:
    power = np.exp(x - x.max(axis=(1, 2), keepdims=True))
    return power / power.sum(axis=(1, 2), keepdims=True)


def test_the_flattening_is_written_out() -> None:
    model = graph(SOFTMAX, opset=11)
    step = FlattenSoftmax()
    step(model)
    assert step.changed == 1
    assert text(model) == lines("""
        v0 = Flatten <axis = 1> (x)
        v1 = Softmax <axis = -1> (v0)
        v2 = Shape (x)
        y = Reshape (v1, v2)
    """)


def test_the_numbers_are_those_of_the_old_meaning() -> None:
    x = normal(2, 3, 4)
    model = graph(SOFTMAX, opset=11)
    FlattenSoftmax()(model)
    (found,) = run(model, x=x)
    np.testing.assert_allclose(found, _softmax(x), rtol=1e-5)


@pytest.mark.parametrize("op", ["LogSoftmax", "Hardmax"])
def test_its_relatives_are_rewritten_too(op: str) -> None:
    model = graph(SOFTMAX.replace("Softmax", op).replace("<axis = 1>", ""), opset=12)
    step = FlattenSoftmax()
    step(model)
    assert step.changed == 1
    assert [node.op_type for node in model.graph] == ["Flatten", op, "Shape", "Reshape"]


@pytest.mark.parametrize("axis", [2, -1])
def test_over_the_last_axis_it_is_left(axis: int) -> None:
    model = graph(SOFTMAX.replace("axis = 1", f"axis = {axis}"), opset=11)
    before = text(model)
    step = FlattenSoftmax()
    step(model)
    assert text(model) == before
    assert step.refused == {"y": "it is over the last axis, where both meanings agree"}


def test_from_opset_13_on_it_is_left() -> None:
    model = graph(SOFTMAX, opset=13)
    before = text(model)
    FlattenSoftmax()(model)
    assert text(model) == before
