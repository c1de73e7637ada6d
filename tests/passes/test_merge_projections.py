"""Products of one input become one product and a split."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graph_text import graph, lines, normal, run, text

from aicc.compiler.passes.merge_projections import MergeProjections
from aicc.compiler.quantization.blockwise import add_blockwise, match_blockwise

TWO_PRODUCTS = """
    (float[n, 8] x) => (float[n, 3] y, float[n, 2] z) {
        at = Transpose <perm = [1, 0]> (a)
        bt = Transpose <perm = [1, 0]> (b)
        q = MatMul (x, at)
        k = MatMul (x, bt)
        y = Relu (q)
        z = Relu (k)
    }
"""
WEIGHTS = {"a": normal(3, 8), "b": normal(2, 8, seed=1)}


def test_two_products_become_one_and_a_split() -> None:
    model = graph(TWO_PRODUCTS, **WEIGHTS)
    step = MergeProjections()
    step(model)
    assert step.changed == 1
    assert text(model) == lines("""
        v0 = Transpose <perm = [1, 0]> (a)
        v1 = Transpose <perm = [1, 0]> (b)
        v2 = Transpose <perm = [1, 0]> (a+b)
        v3 = MatMul (x, v2)
        v4, v5 = Split <axis = -1> (v3, a+b.rows)
        y = Relu (v4)
        z = Relu (v5)
    """)
    assert model.graph.initializers["a+b"].const_value.numpy().shape == (5, 8)
    assert model.graph.initializers["a+b.rows"].const_value.numpy().tolist() == [3, 2]


def test_the_numbers_stay_the_same() -> None:
    x = normal(4, 8, seed=2)
    model = graph(TWO_PRODUCTS, **WEIGHTS)
    before = run(model, x=x)
    MergeProjections()(model)
    for found, expected in zip(run(model, x=x), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "role"),
    [(np.int8, None), (ml_dtypes.uint4, "zero_points"), (ml_dtypes.uint4, "minimum")],
    ids=["int8", "uint4 with zero points", "uint4 from a minimum"],
)
def test_quantised_weights_are_merged_as_they_are_stored(values: type, role: str | None) -> None:
    model = graph("(float[n, 8] x) => (float[n, 3] y, float[n, 2] z) { y = Relu (q)  z = Relu (k) }")
    products = [_quantised_product(model, name, rows, values, role) for name, rows in (("a", 3), ("b", 2))]
    for relu, product in zip([node for node in model.graph if node.op_type == "Relu"], products, strict=True):
        relu.replace_input_with(0, product)
    model.graph.sort()
    x = normal(4, 8, seed=2)
    before = run(model, x=x)

    step = MergeProjections()
    step(model)

    assert (step.changed, step.refused) == (1, {})
    merged = next(node for node in model.graph if node.op_type == "MatMul").inputs[1].producer().inputs[0]
    weight = match_blockwise(merged)
    assert weight is not None
    assert weight.values.const_value.numpy().dtype == values
    assert weight.values.const_value.shape == (5, 8)
    assert {"zero_points": weight.zero_points, "minimum": weight.minimum, None: weight.scales}[role] is not None
    for found, expected in zip(run(model, x=x), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _quantised_product(model: ir.Model, name: str, rows: int, values: type, role: str | None) -> ir.Value:
    """``MatMul(x, Transpose(weight))`` with a random block-wise weight ``[rows, 8]`` in groups of 4."""
    rng = np.random.default_rng(rows)
    low, high = (-127, 128) if values is np.int8 else (0, 16)

    def stored(array: np.ndarray) -> ir.TensorProtocol:
        return ir.tensor(array)

    extra = {}
    if role == "zero_points":
        extra[role] = stored(rng.integers(0, 16, (rows, 2)).astype(values))
    elif role == "minimum":
        extra[role] = stored(rng.standard_normal((rows, 2, 1)).astype(np.float16))
    weight = add_blockwise(
        model.graph, name, stored(rng.integers(low, high, (rows, 8)).astype(values)),
        stored(rng.uniform(0.01, 0.1, (rows, 2)).astype(np.float16)), 4, **extra,
    )  # fmt: skip
    transpose = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [model.graph.inputs[0], transpose.outputs[0]], name=f"{name}.product")
    model.graph.extend([transpose, product])
    return product.outputs[0]


COMPUTED = TWO_PRODUCTS.replace("Transpose <perm = [1, 0]> (b)", "Transpose <perm = [1, 0]> (c)")
NEAR_MISSES = {
    "weight b is used elsewhere too": TWO_PRODUCTS.replace("z = Relu (k)", "w = Relu (b)  z = Relu (k)"),
    "k is an output of the graph": TWO_PRODUCTS.replace("z = Relu (k)", "").replace("float[n, 2] z", "float[n, 2] k"),
    "weight c is not a constant matrix": COMPUTED.replace("float[n, 8] x", "float[n, 8] x, float[2, 8] c"),
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_a_near_miss_stays_untouched_and_says_why(reason: str) -> None:
    model = graph(NEAR_MISSES[reason], **WEIGHTS)
    before = text(model)
    step = MergeProjections()
    step(model)
    assert text(model) == before
    assert step.changed == 0
    assert list(step.refused.values()) == [reason]


def test_weights_of_different_formats_stay_apart() -> None:
    model = graph(TWO_PRODUCTS, a=WEIGHTS["a"])
    (old,) = (node for node in model.graph if node.op_type == "Transpose" and node.inputs[0].name == "b")
    values, scales = ir.tensor(np.ones((2, 8), np.int8)), ir.tensor(np.ones((2, 1), np.float32))
    old.replace_input_with(0, add_blockwise(model.graph, "b", values, scales, 8))
    step = MergeProjections()
    step(model)
    assert list(step.refused.values()) == ["the weights are stored in different formats"]


def test_products_of_different_inputs_are_no_group() -> None:
    model = graph(
        TWO_PRODUCTS.replace("MatMul (x, bt)", "MatMul (u, bt)").replace(
            "float[n, 8] x", "float[n, 8] x, float[n, 8] u"
        ),
        **WEIGHTS,
    )
    before = text(model)
    step = MergeProjections()
    step(model)
    assert (text(model), step.changed, step.refused) == (before, 0, {})
