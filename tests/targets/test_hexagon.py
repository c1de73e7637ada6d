"""Qualcomm's HTP in the emulator of its own package: models compiled with no fallback, against their source."""

import sys
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from efficientnet_lite import all_names, calibration_photos, export, photos
from miniatures import make_decoder
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pictures import picture
from sentences import SENTENCES, mean_pooled
from tokenizers import Tokenizer
from tolerances import TOLERANCES, assert_within, cosine

from aicc.compiler.graph_file import load_graph
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, load
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.machine import Memory
from aicc.runtime.provider import Fit
from aicc.runtime.target import find_target
from aicc.targets.hexagon import provider
from aicc.targets.hexagon.provider import HexagonProvider

pytest.importorskip("onnxruntime_qnn", reason="the extra `hexagon` is not installed")
from aicc.targets.hexagon import lowering  # which asks for the extra

HTP = find_target("hexagon:htp75")
Inputs = dict[str, NDArray[np.int64]]


def _tokens(texts: list[str], length: int) -> Inputs:
    tokenizer = Tokenizer.from_file(str(resolve("minilm-l6").path / "tokenizer.json"))
    tokenizer.enable_padding(length=length)
    tokenizer.enable_truncation(length)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
        "token_type_ids": np.array([e.type_ids for e in encoded]),
    }


def _states(path: Path, tokens: Inputs, device: str | None = None) -> NDArray[np.float32]:
    """The last hidden states of sentences, one at a time."""
    with load(path, device=device) as session:
        rows = [
            session.run({name: array[i : i + 1] for name, array in tokens.items()})
            for i in range(len(tokens["input_ids"]))
        ]
    return np.concatenate([row["last_hidden_state"] for row in rows])


def _embedding_cosine(path: Path, tokens: Inputs, reference: Artifact, device: str | None = None) -> float:
    mask = tokens["attention_mask"]
    found, expected = (mean_pooled(_states(*each), mask) for each in ((path, tokens, device), (reference.path, tokens)))
    return cosine(found, expected)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hexagon") / "minilm.aicc"
    report = compile_model("minilm-l6", "hexagon:htp75,hexagon:htp81", path, sizes={"sequence_len": 16})
    assert sum(row.fallback for row in report.coverage) == 0
    return path


def test_embeddings_point_where_the_sources_do(minilm: Path, reference_encoder: Artifact) -> None:
    tokens = _tokens(list(SENTENCES[:3]), 16)
    for device in ("hexagon:htp75", "hexagon:htp81"):
        assert (
            _embedding_cosine(minilm, tokens, reference_encoder, device) >= TOLERANCES["cosine"]["embeddings_hexagon"]
        )


@pytest.mark.full
def test_fifty_sentences_point_where_the_sources_do_on_two_generations(
    reference_encoder: Artifact, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "compiler/data/heldout.txt").read_text()
    lines = [s.strip() + "." for s in text.replace("\n", " ").split(".") if 20 < len(s) < 110]
    path = tmp_path / "m.aicc"
    compile_model("minilm-l6", "hexagon:htp75,hexagon:htp81", path, sizes={"sequence_len": 32})
    tokens = _tokens(lines[:50], 32)
    for device in ("hexagon:htp75", "hexagon:htp81"):
        found = _embedding_cosine(path, tokens, reference_encoder, device)
        print(f"{device}: smallest cosine {found:.5f}")
        assert found >= TOLERANCES["cosine"]["embeddings_hexagon"]


@pytest.mark.parametrize(
    ("model", "sizes", "shape"),
    [
        ("rapidocr-cls", {"x.2": 48, "x.3": 96}, (1, 3, 48, 96)),
        pytest.param(
            "rapidocr-det",
            {"p2o.DynamicDimension.1": 96, "p2o.DynamicDimension.2": 160},
            (1, 3, 96, 160),
            marks=pytest.mark.full,
        ),
        pytest.param(
            "rapidocr-rec", {"x.2": 48, "p2o.DynamicDimension.1": 160}, (1, 3, 48, 160), marks=pytest.mark.full
        ),
    ],
)
def test_a_vision_model_gives_the_probabilities_of_its_source(
    model: str, sizes: dict[str, int], shape: tuple[int, ...], tmp_path: Path
) -> None:
    compile_model(model, HTP, tmp_path / "m.aicc", sizes=sizes)
    source = onnxruntime.InferenceSession(resolve(model).path)
    (expected,) = source.run(None, {"x": picture(*shape)})
    with load(tmp_path / "m.aicc") as session:
        (found,) = session.run({"x": picture(*shape)}).values()
    print(f"{model}: largest difference of a probability {np.abs(found - expected).max():.5f}")
    assert_within("half", found, expected)


def test_a_decoder_computes_what_transformers_computes_in_chunks_and_single_tokens(tmp_path: Path) -> None:
    source = make_decoder("qwen3")
    source.save_pretrained(tmp_path)
    ids = torch.randint(3, 211, (1, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(ids).logits.numpy()[0]
    sizes = {"context": 16}
    report = compile_model(Source(tmp_path, "huggingface", "m"), HTP, tmp_path / "m.aicc", quant="fp32", sizes=sizes)
    assert "quality was not measured: there is no HTP here" in " ".join(report.notes) or "no tokenizer" in str(
        report.notes
    )
    with load(tmp_path / "m.aicc") as model:
        assert "emulator" in model.device
        assert_within("half", model.logits(ids[0].tolist()), expected)


@pytest.mark.full
def test_smollm2_is_compiled_whole_and_computes_its_step(tmp_path: Path) -> None:
    """Prefill and decode graphs of all 30 layers; a decoded token beside float32."""
    compile_model("smollm2-135m", HTP, tmp_path / "m.aicc", sizes={"context": 64})
    compile_model("smollm2-135m", "reference:cpu", tmp_path / "r.aicc", quant="fp32", measure=False)
    tokens = [504, 3575, 282, 4649, 314]  # The capital of France is
    with load(tmp_path / "m.aicc") as model, load(tmp_path / "r.aicc", kv_tokens=64) as source:
        found, expected = (torch.tensor(m.logits(tokens)).log_softmax(-1) for m in (model, source))
    divergence = (expected.exp() * (expected - found)).sum(-1)
    print(f"KL {divergence.mean():.5f} nats a token, largest {divergence.max():.5f}")
    assert divergence.mean() < 0.05
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.8


def _model(folder: Path, *operators: str) -> Source:
    """A chain of operators on a matrix, each node with its operator's name."""
    nodes = [helper.make_node(op, [f"v{i}"], [f"v{i + 1}"], name=f"my_{op}") for i, op in enumerate(operators)]
    ports = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [8, 16]) for i in (0, len(operators))]
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]), opset_imports=opset, ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return Source(folder / "m.onnx", "onnx", "m")


def test_what_the_chip_cannot_run_is_named_with_what_a_cut_would_cost(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        compile_model(_model(tmp_path, "Relu", "Atanh", "Sigmoid"), HTP, tmp_path / "m.aicc")
    assert "Atanh (my_Atanh)" in refused.value.message
    assert "2 piece(s), with 1,024 bytes" in refused.value.message
    assert "--partition host" in refused.value.remedy
    assert not (tmp_path / "m.aicc").exists()


def test_on_request_the_processor_runs_what_the_chip_refuses_and_the_report_says_so(tmp_path: Path) -> None:
    source = _model(tmp_path, "Tanh", "Atanh", "Sigmoid")
    report = compile_model(source, HTP, tmp_path / "m.aicc", partition="host")
    rows = {row.op: row for row in report.coverage}
    assert {op: (row.delegated, row.fallback) for op, row in rows.items()} == {
        "Tanh": (1, 0), "Atanh": (0, 1), "Sigmoid": (1, 0)
    }  # fmt: skip
    assert rows["Atanh"].reason == "Qualcomm's compiler does not take my_Atanh"
    assert any("2 piece(s) on the chip and 1,024 bytes to and from it" in note for note in report.notes)
    x = picture(8, 16)
    with load(tmp_path / "m.aicc") as session:
        assert "the processor" in session.device
        (found,) = session.run({"v0": x}).values()
    assert_within("half", found, 1 / (1 + np.exp(-x)))


def test_a_graph_of_which_the_chip_runs_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="can run no node"):
        compile_model(_model(tmp_path, "Atanh"), HTP, tmp_path / "m.aicc", partition="host")
    assert not (tmp_path / "m.aicc").exists()


def test_other_families_cut_no_graph(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole or not at all"):
        compile_model(_model(tmp_path, "Relu"), "reference:cpu", tmp_path / "m.aicc", partition="host")


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_constants_of_equal_integers_keep_their_own_scales(kind: str, tmp_path: Path) -> None:
    """3 and 6 are the same integer at different scales, as in the hard swish of a calibrated classifier."""
    nodes = [
        helper.make_node("Add", ["x", "three"], ["a"], name="add"),
        helper.make_node("Div", ["a", "six"], ["y"], name="divide"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 16]) for name in "xy"]
    values = [helper.make_tensor(name, TensorProto.FLOAT, [], [v]) for name, v in (("three", 3.0), ("six", 6.0))]
    opset = [helper.make_opsetid("", 21)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    x = picture(8, 16)
    np.savez(tmp_path / "x.npz", x=x)
    report = compile_model(
        Source(tmp_path / "m.onnx", "onnx", "m"), HTP, tmp_path / "m.aicc", activations=kind,
        calibration=tmp_path / "x.npz",
    )  # fmt: skip
    assert report.quantization == f"int8 by channel, {kind} activations (1 samples)"
    with load(tmp_path / "m.aicc") as session:
        (found,) = session.run({"x": x}).values()
    assert np.abs(found - (x + 3) / 6).max() < 0.01


def test_quantised_activations_of_a_model_of_tokens_are_refused(tmp_path: Path) -> None:
    """The emulator computed MiniLM's otherwise than onnxruntime."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (int64[8] input_ids) => (float[8] y)
        <float s = {0.1}, uint8 z = {3}> { c = Cast <to = 1> (input_ids) q = QuantizeLinear (c, s, z)
        y = DequantizeLinear (q, s, z) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="pictures and sound alone, and this one reads input_ids"):
        compile_model(Source(tmp_path / "m.onnx", "onnx", "m"), HTP, tmp_path / "m.aicc")


def test_weights_in_steps_that_the_compiler_mistakes_are_refused(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[8] x) => (float[8] y)
        <int8[8] w = {1, 2, 3, 4, 5, 6, 7, 8}, float s = {0.000000002}>
        { d = DequantizeLinear (w, s) y = Add (x, d) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="weights of 8 bits with quantisation steps below 1e-07"):
        compile_model(Source(tmp_path / "m.onnx", "onnx", "m"), HTP, tmp_path / "m.aicc")


@pytest.mark.full
@pytest.mark.parametrize(("kind", "least"), [("uint16", 0.9999), ("uint8", 0.998)])
def test_a_calibrated_classifier_gives_what_its_graph_gives_in_onnxruntime(
    kind: str, least: float, tmp_path: Path
) -> None:
    """EfficientNet-Lite0 on photographs it was not calibrated with."""
    export(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", image=calibration_photos())
    out = tmp_path / "m.aicc"
    compile_model(
        str(tmp_path / "m.onnx"), HTP, out, activations=kind, calibration=tmp_path / "x.npz", graph=True
    )  # fmt: skip
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    ir.save(load_graph(Artifact.open(out)), tmp_path / "q.onnx")
    source = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    quantised = onnxruntime.InferenceSession(tmp_path / "q.onnx", settings)
    with load(out) as session:
        for image in photos(all_names())[:6:2, None]:
            (found,) = session.run({"image": image}).values()
            (expected,), (exact,) = (each.run(None, {"image": image}) for each in (quantised, source))
            print(f"{kind}: cosine to the graph {cosine(found, expected):.5f}, to float32 {cosine(found, exact):.5f}")
            assert cosine(found, expected) >= least
            assert found.argmax() == exact.argmax()


def test_a_compiler_that_hangs_or_takes_all_memory_is_stopped_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path, "Relu", "Sigmoid")
    with monkeypatch.context() as patched:
        patched.setattr(lowering, "_SECONDS", 0.01)
        with pytest.raises(ResourceError, match=r"was not done with model\.onnx"):
            compile_model(model, HTP, tmp_path / "m.aicc")
    little = Memory(total=2 << 30, available=600 << 20)
    monkeypatch.setattr(lowering, "memory", lambda: little)
    with pytest.raises(ResourceError, match="cannot be loaded into the 629,145,600 bytes"):
        compile_model(model, HTP, tmp_path / "m.aicc")
    assert not (tmp_path / "m.aicc").exists()


def test_without_the_extra_a_compile_names_it_before_it_reads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name == "onnxruntime-qnn":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    monkeypatch.delitem(sys.modules, "aicc.targets.hexagon.lowering")
    with pytest.raises(MismatchError, match=r"aicc\[hexagon\]"):
        compile_model(str(tmp_path / "none.onnx"), HTP, tmp_path / "m.aicc")
    with pytest.raises(MismatchError, match=r"aicc\[hexagon\]"):
        HexagonProvider().devices()


def test_a_size_the_model_leaves_open_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.2, x\.3") as refused:
        compile_model("rapidocr-cls", HTP, tmp_path / "m.aicc")
    assert "--size x.2=N" in refused.value.remedy


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    compile_model(_model(folder, "Relu", "Sigmoid"), HTP, folder / "m.aicc")
    return folder / "m.aicc"


def test_a_binary_of_another_version_is_to_be_compiled_again(small: Path) -> None:
    variant = Artifact.open(small).variant("hexagon:htp75")
    judge = HexagonProvider().compatibility
    assert judge(variant).fit is Fit.USABLE
    other = msgspec.structs.replace(variant, requires=variant.requires | {"onnxruntime-qnn": "2.6.0"})
    assert judge(other).fit is Fit.RECOMPILE
    assert "2.6.0" in judge(other).reason


def test_a_load_by_another_version_is_refused_with_what_to_do(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "installed", lambda: "2.99.0")
    with pytest.raises(MismatchError, match=r"2\.99\.0 is installed; compile it again"):
        load(small)


@pytest.mark.parametrize(
    ("said", "kind"),
    [("QNN_COMMON_ERROR_MEM_ALLOC: no room", ResourceError), ("QNN_CONTEXT_ERROR_CREATE_FROM_BINARY", MismatchError)],
)
def test_a_chip_that_does_not_take_a_binary_is_an_error_in_words(
    said: str, kind: type[Exception], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are those of QNN; a chip's memory cannot be filled here."""

    def refuse(*arguments: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(provider, "open_session", refuse)
    with pytest.raises(kind, match=r"does not take .*model\.onnx.*if memory is short"):
        load(small)


@pytest.mark.parametrize("change", ["cut", "replaced"])
def test_a_damaged_binary_is_refused_in_words(change: str, small: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(small)
    (path,) = (artifact.path / "variants").rglob("*.onnx")
    before = path.read_bytes()
    damaged = before[: len(before) // 2] if change == "cut" else bytes(len(before))
    try:
        path.write_bytes(damaged)
        with pytest.raises((IntegrityError, MismatchError)):
            load(small)
    finally:
        path.write_bytes(before)


def test_the_same_model_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    compile_model(_model(tmp_path, "Relu", "Sigmoid"), HTP, tmp_path / "m.aicc")
    one, other = (Artifact.open(path).manifest.files for path in (small, tmp_path / "m.aicc"))
    assert [f.sha256 for f in one] == [f.sha256 for f in other]
