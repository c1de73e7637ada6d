"""A graph of open sizes becomes one of fixed ones, or is refused by node."""

import numpy as np
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.static_shapes import StaticShapes, input_shapes, is_static
from aicc.runtime.errors import UnsupportedError, UsageError

# A reshape by sizes that the graph computes from its input's.
RESHAPED = """
    (float[batch, sequence, 8] x) => (float[batch, sequence, 2, 4] y) {
        front = Shape <end = 2> (x)
        back = Constant <value_ints = [2, 4]> ()
        sizes = Concat <axis = 0> (front, back)
        y = Reshape (x, sizes)
    }
"""


def test_arithmetic_on_shapes_is_gone_and_every_value_has_its_sizes() -> None:
    model = graph(RESHAPED)
    StaticShapes({"x": (1, 3, 8)})(model)
    assert text(model) == lines("y = Reshape (x, sizes)")
    assert model.graph.initializers["sizes"].const_value.numpy().tolist() == [1, 3, 2, 4]
    assert [list(value.shape) for value in model.graph.outputs] == [[1, 3, 2, 4]]


def test_the_numbers_stay_the_same() -> None:
    x = normal(1, 3, 8)
    (before,) = run(graph(RESHAPED), x=x)
    model = graph(RESHAPED)
    StaticShapes({"x": (1, 3, 8)})(model)
    np.testing.assert_array_equal(run(model, x=x)[0], before)


def test_positions_counted_from_a_length_are_folded_too() -> None:
    model = graph("""
        (float[batch, sequence] x) => (float[batch, sequence] y) {
            length = Shape <start = 1> (x)
            one = Constant <value_int = 1> ()
            zero = Constant <value_int = 0> ()
            positions = Range (zero, length, one)
            counted = Cast <to = 1> (positions)
            y = Add (x, counted)
        }
    """)
    StaticShapes({"x": (1, 3)})(model)
    assert text(model) == lines("y = Add (x, counted)")


def test_padding_that_begins_with_equal_numbers_is_folded() -> None:
    model = graph("""
        (float[1, 3] x) => (float[m, n] y) {
            one = Constant <value_ints = [1]> ()
            three = Constant <value_ints = [3]> ()
            zeros = ConstantOfShape <value = int64[1] {0}> (three)
            pads = Concat <axis = 0> (zeros, one)
            y = Pad (x, pads)
        }
    """)
    StaticShapes({})(model)
    assert text(model) == lines("y = Pad (x, pads)")
    assert [list(value.shape) for value in model.graph.outputs] == [[1, 4]]


def test_many_equal_numbers_are_not_folded() -> None:
    model = graph("""
        (float[n] x) => (float[1000, 1000] y) {
            sizes = Constant <value_ints = [1000, 1000]> ()
            zeros = ConstantOfShape (sizes)
            y = Add (x, zeros)
        }
    """)
    StaticShapes({"x": (1,)})(model)
    assert [node.op_type for node in model.graph] == ["ConstantOfShape", "Add"]


def test_a_size_that_depends_on_values_is_refused_by_its_node() -> None:
    model = graph("(float[n] x) => (int64[1, m] y) { y = NonZero (x) }")
    model.graph[0].name = "found"
    with pytest.raises(UnsupportedError, match=r"NonZero \(found\)") as refused:
        StaticShapes({"x": (4,)})(model)
    assert "Export the model" in refused.value.remedy


def test_a_fixed_graph_stays_untouched() -> None:
    model = graph("(float[2, 8] x) => (float[2, 8] y) { y = Relu (x) }")
    before = text(model)
    StaticShapes({})(model)
    assert text(model) == before
    assert all(is_static(value) for node in model.graph for value in node.outputs)


def test_the_first_dimension_is_one_and_a_sequence_a_chunk_where_nobody_says_more() -> None:
    model = graph(
        "(int64[batch, sequence] ids, float[batch, 3] x) => (int64[batch, sequence] y) { y = Identity (ids) }"
    )
    assert input_shapes(model.graph, {}) == {"ids": (1, 128), "x": (1, 3)}
    assert input_shapes(model.graph, {"batch": 4, "sequence": 16}) == {"ids": (4, 16), "x": (4, 3)}


PICTURE = "(float[n, 3, height, width] x) => (float[n, 3, height, width] y) { y = Relu (x) }"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "leaves these sizes open: height, width"),
        ({"height": 32}, r"leaves these sizes open: width. Its inputs are x \[n, 3, height, width\]"),
        ({"height": 32, "width": 32, "depth": 1}, "no size called 'depth'"),
        ({"height": 0, "width": 32}, "height is 0"),
    ],
)
def test_sizes_that_are_missing_or_unknown_are_named(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        input_shapes(graph(PICTURE).graph, sizes)
