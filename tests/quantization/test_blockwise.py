"""Block-wise weights in the graph: what is built is recognised, and means exactly what its formula says."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graph_text import graph, lines, normal, text
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from aicc.compiler.quantization.blockwise import add_blockwise, match_blockwise
from aicc.compiler.quantization.convert import reader

EMPTY = "(float[4] x) => (float[4] y) { y = Identity (x) }"
DTYPES = (ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.uint8)


def stored(array: np.ndarray) -> ir.TensorProtocol:
    return ir.tensor(array)


def integers(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    info = ml_dtypes.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def weight(model: ir.Model, dtype: type, role: str | None, scales: type = np.float16, seed: int = 0) -> ir.Value:
    """A weight ``[3, 8]`` in groups of 4 with zero points, a minimum or neither."""
    extra = {}
    if role == "zero_points":
        extra[role] = stored(integers(dtype, 3, 2, seed=seed + 1))
    elif role == "minimum":
        extra[role] = stored(normal(3, 2, 1, seed=seed).astype(scales))
    scale = (np.abs(normal(3, 2, seed=seed + 2)) + 0.01).astype(scales)
    return add_blockwise(model.graph, "w", stored(integers(dtype, 3, 8, seed=seed)), stored(scale), 4, **extra)


def evaluated(model: ir.Model, value: ir.Value) -> np.ndarray:
    copy = ir.node("Identity", [value])
    copy.outputs[0].name = "found"
    model.graph.append(copy)
    model.graph.outputs.append(copy.outputs[0])
    return ReferenceEvaluator(ir.to_proto(model)).run(["found"], {"x": np.zeros(4, np.float32)})[0]


def test_a_weight_from_a_minimum_is_five_standard_operators() -> None:
    model = graph(EMPTY)
    weight(model, ml_dtypes.uint4, "minimum", np.float32)
    assert text(model) == lines("""
        v0 = DequantizeLinear <axis = 1, block_size = 4> (w.values, w.scales)
        v1 = Reshape (v0, w.grouped)
        v2 = Add (v1, w.minimum)
        v3 = Reshape (v2, w.flat)
        y = Identity (x)
    """)


def test_half_precision_scales_are_widened_before_they_are_used() -> None:
    model = graph(EMPTY)
    weight(model, np.int8, None)
    assert text(model) == lines("""
        v0 = Cast <to = 1> (w.scales)
        v1 = DequantizeLinear <axis = 1, block_size = 4> (w.values, v0)
        y = Identity (x)
    """)


@pytest.mark.parametrize("scales", [np.float16, np.float32])
@pytest.mark.parametrize("role", [None, "zero_points", "minimum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_added_is_recognised(dtype: type, role: str | None, scales: type) -> None:
    model = graph(EMPTY)
    value = weight(model, dtype, role, scales)
    found = match_blockwise(value)
    assert found is not None
    assert found.output is value
    assert found.values is model.graph.initializers["w.values"]
    assert found.scales is model.graph.initializers["w.scales"]
    assert (found.zero_points is not None, found.minimum is not None) == (role == "zero_points", role == "minimum")
    assert found.group_size == 4
    assert found.bits == (4 if dtype in DTYPES[:2] else 8)
    assert found.offset == {None: "none", "zero_points": "integer", "minimum": "float"}[role]
    assert (value.dtype, list(value.shape)) == (ir.DataType.FLOAT, [3, 8])


@pytest.mark.parametrize("role", [None, "zero_points", "minimum"])
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 1000))
def test_the_graph_computes_the_formula_to_the_last_bit(dtype: type, role: str | None, seed: int) -> None:
    model = graph(EMPTY)
    value = weight(model, dtype, role, seed=seed)
    held = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
    expected = held["w.values"].astype(np.float32).reshape(3, 2, 4)
    if role == "zero_points":
        expected -= held["w.zero_points"].astype(np.float32)[..., None]
    expected *= held["w.scales"].astype(np.float32)[..., None]
    if role == "minimum":
        expected += held["w.minimum"].astype(np.float32)
    expected = expected.reshape(3, 8)

    assert np.array_equal(reader(match_blockwise(value))(), expected)
    assert np.array_equal(evaluated(model, value), expected)


def test_zero_points_and_a_minimum_exclude_each_other() -> None:
    model = graph(EMPTY)
    values, scales = stored(integers(np.int8, 3, 8)), stored(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="not both"):
        add_blockwise(model.graph, "w", values, scales, 4, stored(integers(np.int8, 3, 2)), stored(normal(3, 2, 1)))


NEAR_MISSES = {
    "one scale for all": "y = DequantizeLinear (q, s)",
    "a scale a column": "y = DequantizeLinear <axis = 1> (q, v)",
    "groups along the rows": "y = DequantizeLinear <axis = 0, block_size = 2> (q, g)",
    "a scale that is computed": "s2 = Abs (b)  y = DequantizeLinear <axis = 1, block_size = 4> (q, s2)",
    "an addition without its reshapes": "d = DequantizeLinear <axis = 1, block_size = 4> (q, b)  y = Add (d, d)",
}


@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_other_uses_of_the_operator_are_not_taken_for_one(miss: str) -> None:
    constants = {"s": np.float32(0.5), "v": np.ones(8, np.float32), "g": np.ones((2, 8), np.float32)}
    model = graph(
        f"(float[4] x) => (float[4, 8] y) {{ {NEAR_MISSES[miss]} }}",
        q=integers(np.int8, 4, 8), b=np.ones((4, 2), np.float32), **constants,
    )  # fmt: skip
    assert match_blockwise(model.graph.outputs[0]) is None


def test_a_constant_and_nothing_at_all_are_not_taken_for_one() -> None:
    model = graph("(float[4] x) => (float[4] y) { y = Add (x, w) }", w=normal(4))
    assert match_blockwise(model.graph.initializers["w"]) is None
    assert match_blockwise(None) is None
