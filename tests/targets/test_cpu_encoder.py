"""Encoders as native code: right at full precision, close at few bits, a sequence the same whatever is beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from miniatures import ENCODERS, make_encoder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sentences import mean_pooled, tokens_of
from tolerances import TOLERANCES, assert_within, cosine

from aicc.compiler.check import check_model
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, Session, load
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.machine import processor
from aicc.runtime.target import all_targets, find_target

HERE = [t for t in all_targets().values() if t.family == "cpu" and t.runs_on(processor())]
Inputs = dict[str, NDArray[np.int64]]


@pytest.fixture(scope="module")
def sentences() -> Inputs:
    return tokens_of(resolve("minilm-l6").path)


@pytest.fixture(scope="module")
def reference(sentences: Inputs, reference_encoder: Artifact) -> NDArray[np.float32]:
    """The last hidden states of MiniLM in onnxruntime."""
    with load(reference_encoder.path) as session:
        return session.run(sentences)["last_hidden_state"]


@pytest.fixture(scope="module")
def exact(encoder_artifact: Artifact) -> Iterator[Session]:
    """MiniLM at float32."""
    with load(encoder_artifact.path) as session:
        yield session


def _run(session: Session, inputs: Inputs) -> NDArray[np.float32]:
    return session.run(inputs)["last_hidden_state"]  # type: ignore[return-value]


def _piece(inputs: Inputs, rows: slice, columns: slice = slice(None)) -> Inputs:
    return {name: np.ascontiguousarray(array[rows, columns]) for name, array in inputs.items()}


def test_a_real_encoder_computes_what_its_source_does_padding_included(
    exact: Session, sentences: Inputs, reference: NDArray[np.float32]
) -> None:
    assert_within("model", _run(exact, sentences), reference)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_embeddings_with_quantised_weights_point_where_the_sources_do(
    quant: str, sentences: Inputs, reference: NDArray[np.float32], tmp_path: Path
) -> None:
    compile_model("minilm-l6", "cpu", tmp_path / "m.aicc", quant=quant)  # type: ignore[arg-type]
    with load(tmp_path / "m.aicc") as session:
        found = mean_pooled(_run(session, sentences), sentences["attention_mask"])
    expected = mean_pooled(reference, sentences["attention_mask"])
    assert cosine(found, expected) >= TOLERANCES["cosine"][f"embeddings_{quant}"]


def test_a_sequence_has_the_same_bits_alone_and_padded_beside_others(exact: Session, sentences: Inputs) -> None:
    together = _run(exact, sentences)
    for row, length in enumerate(sentences["attention_mask"].sum(axis=1)):
        alone = _run(exact, _piece(sentences, slice(row, row + 1), slice(0, length)))
        assert np.array_equal(alone[0], together[row, :length])


def test_more_sequences_than_are_computed_at_once_are_all_computed(exact: Session, sentences: Inputs) -> None:
    many = {name: np.tile(array, (30, 1)) for name, array in sentences.items()}
    assert np.array_equal(_run(exact, many), np.tile(_run(exact, sentences), (30, 1, 1)))


def test_no_sequences_and_no_tokens_give_no_rows(exact: Session, sentences: Inputs) -> None:
    assert _run(exact, _piece(sentences, slice(0, 0))).shape[0] == 0
    assert _run(exact, _piece(sentences, slice(0, 2), slice(0, 0))).shape == (2, 0, 384)


def test_a_sequence_that_hides_all_its_tokens_is_nan_and_the_others_are_not(exact: Session, sentences: Inputs) -> None:
    hidden = sentences | {"attention_mask": sentences["attention_mask"].copy()}
    hidden["attention_mask"][1] = 0
    found = _run(exact, hidden)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[2:], _run(exact, sentences)[2:])


def test_the_longest_sequence_runs_and_one_token_more_is_refused(exact: Session) -> None:
    inputs = {name: np.ones((1, 512), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert np.isfinite(_run(exact, inputs)).all()
    with pytest.raises(UsageError, match="513 tokens long, and this model takes 512"):
        _run(exact, {name: np.ones((1, 513), np.int64) for name in inputs})


@pytest.mark.parametrize(("name", "value"), [("input_ids", 30522), ("input_ids", -1), ("token_type_ids", 2)])
def test_a_number_outside_its_table_is_refused_and_the_model_goes_on(
    exact: Session, sentences: Inputs, name: str, value: int
) -> None:
    wrong = sentences | {name: sentences[name].copy()}
    wrong[name][3, 2] = value
    with pytest.raises(UsageError, match="size of the table"):
        _run(exact, wrong)
    assert np.isfinite(_run(exact, sentences)).all()


def test_inputs_of_different_shapes_are_refused(exact: Session, sentences: Inputs) -> None:
    with pytest.raises(UsageError, match="must agree"):
        _run(exact, sentences | {"attention_mask": sentences["attention_mask"][:, :3]})


def test_a_closed_encoder_says_so(sentences: Inputs, tmp_path: Path) -> None:
    make_encoder("bert").save_pretrained(tmp_path)
    compile_model(Source(tmp_path, "huggingface", "miniature"), "cpu", tmp_path / "m.aicc")
    session = load(tmp_path / "m.aicc")
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(_piece(sentences, slice(0, 1)))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_computes_what_transformers_computes_with_holes_in_the_mask(name: str, tmp_path: Path) -> None:
    model = make_encoder(name)
    model.save_pretrained(tmp_path)
    targets = HERE if name == "bert" else HERE[:1]
    asked = ",".join(target.name for target in targets)
    compile_model(Source(tmp_path, "huggingface", 'a "miniature" */'), asked, tmp_path / "m.aicc")
    ids = torch.randint(3, 211, (3, 40), generator=torch.Generator().manual_seed(1))
    mask = (torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) > 0.3).long()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state.numpy()
    for target in targets:
        with load(tmp_path / "m.aicc", device=target.name, threads=1) as session:
            inputs = {
                "input_ids": ids.numpy(),
                "attention_mask": mask.numpy(),
                "token_type_ids": np.zeros((3, 40), int),
            }
            names = [spec.name for spec in session.signatures["default"].inputs]
            assert_within("model", _run(session, {n: inputs[n] for n in names}), expected)


def test_a_model_compiled_again_to_the_same_path_is_the_one_that_is_loaded_next(tmp_path: Path) -> None:
    make_encoder("bert").save_pretrained(tmp_path)
    inputs = {name: np.ones((1, 4), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    found = []
    for quant in ("fp32", "int8"):
        compile_model(Source(tmp_path, "huggingface", "miniature"), "cpu", tmp_path / "m.aicc", quant=quant)  # type: ignore[arg-type]
        with load(tmp_path / "m.aicc") as session:
            found.append(_run(session, inputs))
    assert not np.array_equal(found[0], found[1])


_GRAPH = """
<ir_version: 10, opset_import: ["" : 24]>
odd (int64[batch, length] ids, int64[batch, length] seen) => (float[batch, length, 32] states) {{
    x = Gather (table, ids)
    {lines}
}}
"""
_ATTEND = "a = Attention <q_num_heads: int = 2, kv_num_heads: int = 2{more}> (x, x, x{mask})\n states = Add (a, x)"


def _odd(folder: Path, lines: str, **constants: NDArray[np.floating]) -> Source:
    proto = onnx.parser.parse_model(_GRAPH.format(lines=lines))
    constants["table"] = np.random.default_rng(1).standard_normal((50, 32))
    proto.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items())
    axes = {"axes": [1, 2], "last": [2]}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in axes.items())
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    onnx.save(proto, folder / "odd.onnx")
    return Source(folder / "odd.onnx", "onnx", "odd")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (_ATTEND.format(more=", is_causal: int = 1", mask=""), r"Attention \(attention_1\): it is causal"),
        (
            "s = Neg (seen)\n b = Cast <to: int = 9> (s)\n n = Not (b)\n m = Unsqueeze (n, axes)\n"
            + _ATTEND.format(more="", mask=", m"),
            r"Attention \(attention_5\): its mask",
        ),
        ("states = CumSum (x, last)", r"CumSum \(cumsum_1\): it has no kernel"),
        ("y = Gather (table, seen)\n t = Transpose <perm = [1, 0, 2]> (y)\n states = Add (x, t)", r"transpose_2"),
        ("t = Add (ids, seen)\n y = Gather (table, t)\n states = Add (x, y)", r"Gather \(gather_2\): which rows"),
    ],
)
def test_what_is_no_operation_on_rows_is_refused_by_node(lines: str, said: str, tmp_path: Path) -> None:
    source = _odd(tmp_path, lines)
    with pytest.raises(UnsupportedError, match=said) as refused:
        compile_model(source, "cpu", tmp_path / "m.aicc")
    assert "openvino:cpu" in refused.value.remedy
    assert check_model(source, find_target("cpu")).refused[0].reason in refused.value.message


def test_inputs_that_are_no_token_ids_are_refused_by_the_node_that_reads_them(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="rectify")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:])), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"Relu \(rectify\): the input x is not int64"):
        compile_model(Source(tmp_path / "m.onnx", "onnx", "m"), "cpu", tmp_path / "m.aicc")


def test_an_attention_that_hides_nothing_needs_no_mask(tmp_path: Path) -> None:
    source = _odd(tmp_path, _ATTEND.format(more="", mask=""))
    ids = np.random.default_rng(2).integers(0, 50, (2, 9))
    found = []
    for target in ("cpu", "reference:cpu"):
        compile_model(source, target, tmp_path / "m.aicc")
        with load(tmp_path / "m.aicc") as session:
            found.append(session.run({"ids": ids, "seen": ids})["states"])
    assert_within("model", *found)


def _states(source: Source, folder: Path) -> NDArray[np.float32]:
    compile_model(source, "cpu", folder / "m.aicc")
    ids = np.random.default_rng(2).integers(0, 50, (2, 9))
    with load(folder / "m.aicc") as session:
        return session.run({"ids": ids, "seen": ids})["states"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    "names",
    [
        ("*/\n#error code\n/*", "**//\n#error code\n/**", "*\\\n/\n#error code\n/*"),
        ("int", "memcpy", "aicc_fma"),
        ("tile_0", "\u00b2\u00e9", "@ 9 {"),
    ],
)
def test_names_in_a_model_are_no_code(names: tuple[str, str, str], tmp_path: Path) -> None:
    lines = "w = MatMul (x, weight)\n a = Mul (w, w)\n states = Add (a, x)"
    source = _odd(tmp_path, lines, weight=np.eye(32, dtype=np.float32))
    expected = _states(source, tmp_path)
    model = onnx.load(source.path)
    for node, name in zip(model.graph.node[1:], names, strict=True):
        node.name = name
    for tensor, name in zip(model.graph.initializer, names, strict=False):
        for node in model.graph.node:
            node.input[:] = [name if value == tensor.name else value for value in node.input]
        tensor.name = name
    onnx.save(model, source.path)
    assert np.array_equal(_states(source, tmp_path), expected)


def test_a_constant_that_many_ways_lead_to_is_found_once(tmp_path: Path) -> None:
    doubled = "\n".join(f"c{i + 1} = Add (c{i}, c{i})" for i in range(60))
    source = _odd(tmp_path, f"{doubled}\n y = Gather (c60, seen)\n states = Add (x, y)", c0=np.zeros((50, 32)))
    with pytest.raises(UnsupportedError, match="not a constant matrix"):
        compile_model(source, "cpu", tmp_path / "m.aicc")


def test_what_is_not_a_number_is_not_made_one(tmp_path: Path) -> None:
    shift = np.where(np.arange(32) == 3, np.nan, 0.0)
    found = _states(_odd(tmp_path, "y = Add (x, shift)\n states = Relu (y)", shift=shift), tmp_path)
    assert np.isnan(found[..., 3]).all()
    assert (np.delete(found, 3, axis=-1) >= 0).all()
