"""Which weight gets which format, on a small graph: an embedding that is the output projection too, a
projection, and a matrix too small to matter."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graph_text import graph, normal, run

from aicc.compiler.importers import ImportedModel
from aicc.compiler.quantization.blockwise import BlockwiseWeight, add_blockwise
from aicc.compiler.quantization.policy import find_weights, quantize
from aicc.runtime.artifact import SourceInfo
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.target import Target, find_target

OPENVINO = find_target("openvino:cpu")
TRITON = find_target("triton:sm90")
NPU = find_target("openvino:npu")  # int8 by row, and floats
MODEL = """
    (int64[n] ids) => (float[n, 80] y, float[n, 16] z) {
        h = Gather (table, ids)
        at = Transpose <perm = [1, 0]> (a)
        p = MatMul (h, at)
        bt = Transpose <perm = [1, 0]> (small)
        z = MatMul (p, bt)
        tt = Transpose <perm = [1, 0]> (table)
        y = MatMul (h, tt)
    }
"""
WEIGHTS = {"table": normal(80, 64), "a": normal(128, 64, seed=1), "small": normal(16, 128, seed=2)}


def imported(kind: str = "decoder", text: str = MODEL, **weights: np.ndarray) -> ImportedModel:
    return ImportedModel(graph(text, **{**WEIGHTS, **weights}), kind, SourceInfo("small", "onnx", "0" * 64))  # type: ignore[arg-type]


def quantised_source(role: str) -> ImportedModel:
    """The same model with ``a`` in 4 bits by groups of 32, and integer zero points or minima."""
    model = imported()
    rng = np.random.default_rng(3)
    zero_points = ir.tensor(rng.integers(0, 16, (128, 2)).astype(ml_dtypes.uint4))
    minimum = ir.tensor(normal(128, 2, 1).astype(np.float16))
    value = add_blockwise(
        model.graph.graph,
        "a.blocks",
        ir.tensor(rng.integers(0, 16, (128, 64)).astype(ml_dtypes.uint4)),
        ir.tensor(np.full((128, 2), 0.1, np.float16)),
        32,
        **{"zero_points": {"zero_points": zero_points}, "minimum": {"minimum": minimum}}[role],
    )
    (transpose,) = (n for n in model.graph.graph if n.op_type == "Transpose" and n.inputs[0].name == "a")
    transpose.replace_input_with(0, value)
    del model.graph.graph.initializers["a"]
    return model


def blocks(model: ImportedModel) -> dict[str, BlockwiseWeight]:
    """Quantised weights by the first part of their name."""
    found = find_weights(model.graph)
    return {str(use.value.name).split(".")[0]: use.blockwise for use in found if use.blockwise is not None}


def outputs(model: ImportedModel) -> list[np.ndarray]:
    return run(model.graph, ids=np.arange(80))


def moved(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """How far the numbers are from where they were, on average and relative to their size; the worst output."""
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(found, expected, strict=True)]
    return max(float(np.abs(a - b).mean() / np.abs(b).mean()) for a, b in pairs)


def test_the_default_stores_a_decoders_float_weights_as_int8_by_row() -> None:
    model = imported()
    assert quantize(model, OPENVINO, "auto", None) == "int8 by row embeddings, int8 by row"
    assert {name: (w.bits, w.group_size, w.offset) for name, w in blocks(model).items()} == {
        "table": (8, 64, "none"),
        "a": (8, 64, "none"),
    }
    assert model.graph.graph.initializers["small"].dtype == ir.DataType.FLOAT


def test_the_default_leaves_models_of_tensors_as_they_are() -> None:
    model = imported("tensors")
    before = outputs(model)
    assert quantize(model, OPENVINO, "auto", None) == "float32 embeddings, float32"
    assert all(np.array_equal(one, other) for one, other in zip(outputs(model), before, strict=True))


@pytest.mark.parametrize("role", ["zero_points", "minimum"])
def test_the_default_keeps_a_quantised_source_to_the_bit(role: str) -> None:
    model = quantised_source(role)
    before = blocks(model)["a"]
    assert "uint4 group 32" in quantize(model, OPENVINO, "auto", None)
    after = blocks(model)["a"]
    assert (after.values, after.scales, after.zero_points, after.minimum) == (
        before.values,
        before.scales,
        before.zero_points,
        before.minimum,
    )


def test_float8_is_stored_with_a_scale_a_row_also_where_the_source_has_fewer_bits() -> None:
    model = quantised_source("minimum")
    assert quantize(model, TRITON, "fp8", None) == "float8_e4m3fn by row embeddings, float8_e4m3fn by row"
    assert {w.dtype for w in blocks(model).values()} == {"float8e4m3"}
    quantize(model, OPENVINO, "auto", None)  # which has none
    assert {w.dtype for w in blocks(model).values()} == {""}


def test_a_target_without_the_format_gets_one_it_has() -> None:
    model = quantised_source("minimum")
    quantize(model, NPU, "auto", None)
    assert (blocks(model)["a"].bits, blocks(model)["a"].group_size, blocks(model)["a"].offset) == (8, 64, "none")


def test_int4_spares_the_embeddings() -> None:
    model = imported()
    assert quantize(model, OPENVINO, "int4", None) == "int8 by row embeddings, uint4 group 32"
    assert (blocks(model)["a"].bits, blocks(model)["a"].offset) == (4, "integer")
    assert blocks(model)["table"].bits == 8


def test_an_embedding_that_is_the_output_projection_is_stored_once() -> None:
    model = imported()
    quantize(model, OPENVINO, "int8", None)
    users = {use.node.op_type for use in blocks(model)["table"].output.uses()}
    assert users == {"Gather", "Transpose"}
    assert "table" not in model.graph.graph.initializers


def test_a_group_that_does_not_divide_the_rows_becomes_one_that_does_and_says_so() -> None:
    model = imported()
    quantize(model, OPENVINO, "int4", 48)
    assert blocks(model)["a"].group_size == 32
    assert any("do not divide by 48" in note for note in model.notes)


@pytest.mark.parametrize(
    ("target", "quant", "limit"),
    [
        (OPENVINO, "int8", 0.01),
        (OPENVINO, "int4", 0.12),
        (OPENVINO, "fp16", 0.001),
        (OPENVINO, "fp32", 0.0),
        (TRITON, "fp8", 0.05),
        (TRITON, "bf16", 0.005),
    ],
)
def test_numbers_move_by_as_much_as_the_format_allows(target: Target, quant: str, limit: float) -> None:
    model = imported()
    before = outputs(model)
    quantize(model, target, quant, None)  # type: ignore[arg-type]
    assert moved(outputs(model), before) <= limit


@pytest.mark.parametrize("quant", ["fp16", "fp32"])
def test_float_formats_undo_quantisation(quant: str) -> None:
    model = quantised_source("minimum")
    expected = outputs(model)
    assert quantize(model, OPENVINO, quant, None) == {  # type: ignore[arg-type]
        "fp16": "float16 embeddings, float16",
        "fp32": "float32 embeddings, float32",
    }[quant]  # fmt: skip
    assert not blocks(model)
    assert moved(outputs(model), expected) <= (0.001 if quant == "fp16" else 0.0)


def test_weights_of_a_float16_graph_stay_float16_for_the_graph() -> None:
    text = MODEL.replace("float[", "float16[")
    model = imported(text=text, **{name: array.astype(np.float16) for name, array in WEIGHTS.items()})
    before = outputs(model)
    quantize(model, OPENVINO, "int8", None)
    after = outputs(model)
    assert {array.dtype.name for array in after} == {"float16"}
    assert moved(after, before) <= 0.01


def test_no_weight_is_read_while_formats_are_chosen() -> None:
    model = imported()
    for name in ("table", "a"):
        value = model.graph.graph.initializers[name]

        def refuse(name: str = name) -> ir.TensorProtocol:
            raise AssertionError(f"{name} was read")

        value.const_value = ir.LazyTensor(refuse, dtype=ir.DataType.FLOAT, shape=value.shape)
    assert quantize(model, OPENVINO, "int4", None) == "int8 by row embeddings, uint4 group 32"


@pytest.mark.parametrize(
    ("target", "quant", "group", "message"),
    [
        (OPENVINO, "auto", 32, "group size of 32 makes no sense with --quant auto"),
        (OPENVINO, "fp16", 32, "makes no sense"),
        (OPENVINO, "int4", 0, "group size of 0"),
        (OPENVINO, "int4", -16, "group size of -16"),
        (NPU, "int4", None, "openvino:npu has no int4 weights"),
        (NPU, "fp8", None, "openvino:npu has no fp8 weights"),
        (TRITON, "fp8", 32, "makes no sense"),
        (OPENVINO, "bf16", None, "openvino:cpu has no bf16 weights"),
        (NPU, "int8", 32, "openvino:npu does not multiply with int8 weights in groups of 32"),
    ],
)
def test_requests_that_make_no_sense_are_refused(target, quant, group, message) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        quantize(imported(), target, quant, group)
    assert refused.value.remedy


def test_a_format_no_weight_can_take_is_refused_not_ignored() -> None:
    model = imported(text="(float[n, 64] x) => (float[n, 128] y) { y = MatMul (x, w) }", w=normal(64, 128))
    with pytest.raises(UnsupportedError, match="no weight of this graph can become int8"):
        quantize(model, OPENVINO, "int8", None)
