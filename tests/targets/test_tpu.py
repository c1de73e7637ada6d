"""Real models compiled for TPUs by their own compiler, without one, and the same StableHLO's numbers on XLA's CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from miniatures import make_decoder
from sentences import tokens_of
from tolerances import TOLERANCES

from aicc.compiler.check import check_model
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, load
from aicc.runtime.errors import (
    ContextLengthError,
    IntegrityError,
    MismatchError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from aicc.runtime.generator import Model
from aicc.runtime.provider import Fit, LoadOptions
from aicc.runtime.target import find_target, load_object
from aicc.targets.tpu.layout import LAYOUT_FILE, Layout

LIMIT = TOLERANCES["difference"]["tpu"]
PROMPT = "The capital of France is Paris, and the capital of Italy is"


def layout_of(artifact: Artifact) -> Layout:
    (variant,) = artifact.manifest.variants
    return msgspec.json.decode(artifact.file(f"variants/{variant.name}/{LAYOUT_FILE}").read_bytes(), type=Layout)


def in_onnxruntime(artifact: Artifact) -> Any:
    """The portable graph of an artifact, as the reference family runs it."""
    return load_object(find_target("reference:cpu").provider)().load(artifact, artifact.variant(), LoadOptions())


def one_node(folder: Path, text: str) -> Source:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22]> g {text}'), path)
    return Source(path, "onnx", "model")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("small")
    weight = "float[64, 64] w = {" + ", ".join(["0.5"] * 4096) + "}"
    source = one_node(folder, f"(float[2, 64] x) => (float[2, 64] y) <{weight}> {{ y = MatMul (x, w) }}")
    compile_model(source, "tpu:host", folder / "small.aicc")
    return Artifact.open(folder / "small.aicc")


def test_sentences_have_the_vectors_that_the_artifacts_own_graph_gives_in_onnxruntime(tmp_path: Path) -> None:
    inputs = tokens_of(resolve("minilm-l6").path)
    sizes = dict(zip(("batch", "sequence_len"), inputs["input_ids"].shape, strict=True))
    compile_model("minilm-l6", "tpu:host", tmp_path / "m.aicc", sizes=sizes)
    with load(tmp_path / "m.aicc") as session:
        found = session.run(inputs)["last_hidden_state"]
        judged = in_onnxruntime(session.artifact).run("default", inputs)["last_hidden_state"]
    assert np.abs(found - judged).max() < LIMIT


def test_a_small_decoder_computes_what_transformers_computes(tmp_path: Path) -> None:
    model = make_decoder("llama")
    model.save_pretrained(tmp_path / "llama")
    ids = [5, 77, 3, 200, 9, 14, 150, 31, 8, 99, 120]  # more than a chunk of half the context
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.numpy()[0]
    source = Source(tmp_path / "llama", "huggingface", "llama")
    compile_model(source, "tpu:host", tmp_path / "m.aicc", quant="fp32", sizes={"context": 16}, measure=False)
    with load(tmp_path / "m.aicc") as loaded:
        assert np.abs(loaded.logits(ids) - expected).max() < LIMIT


def test_a_text_that_outgrows_a_context_goes_on_in_a_larger_one_with_the_same_tokens(tmp_path: Path) -> None:
    make_decoder("qwen3").save_pretrained(tmp_path / "qwen3")
    source, options = Source(tmp_path / "qwen3", "huggingface", "qwen3"), {"quant": "fp32", "measure": False}
    for name, contexts in (("one", 32), ("several", (8, 32))):
        compile_model(source, "tpu:host", tmp_path / name, sizes={"context": contexts}, **options)
    artifact, prompt = Artifact.open(tmp_path / "several"), [5, 77, 3, 200, 9]
    programs = layout_of(artifact).programs
    assert [(p.name, p.tokens, p.context) for p in programs] == [
        ("prefill-8", 4, 8), ("decode-8", 1, 8), ("prefill-32", 16, 32), ("decode-32", 1, 32)
    ]  # fmt: skip
    assert len({p.weights for p in programs}) == 1  # which are on the chip once
    with load(tmp_path / "one") as one, load(artifact.path) as several:
        assert several.generate(prompt, max_tokens=20).token_ids == one.generate(prompt, max_tokens=20).token_ids


@pytest.mark.full
def test_a_decoder_says_what_its_own_graph_says_in_onnxruntime(tmp_path: Path) -> None:
    compile_model("smollm2-135m", "tpu:host", tmp_path / "m.aicc", sizes={"context": 64}, measure=False)
    artifact = Artifact.open(tmp_path / "m.aicc")
    with load(artifact.path) as model, Model(in_onnxruntime(artifact), artifact) as reference:
        prompt = model.tokenizer.encode(PROMPT)
        assert np.abs(model.logits(prompt) - reference.logits(prompt)).max() < LIMIT
        assert model.generate(prompt, max_tokens=12).token_ids == reference.generate(prompt, max_tokens=12).token_ids
        with pytest.raises(ContextLengthError, match="context holds 64"):
            model.generate(prompt * 8, max_tokens=1)


@pytest.mark.parametrize("target", ["tpu:v5e", pytest.param("tpu:v6e", marks=pytest.mark.full)])
def test_an_encoder_is_compiled_for_a_chip_that_is_not_here(target: str, tmp_path: Path) -> None:
    report = compile_model("minilm-l6", target, tmp_path / "m.aicc")
    artifact = Artifact.open(tmp_path / "m.aicc")
    (program,) = layout_of(artifact).programs
    assert program.analysis["argument_bytes"] >= artifact.manifest.memory.weight_bytes
    assert program.analysis["generated_code_bytes"] > 0
    assert program.analysis["operations"] > 0
    assert b".py" not in artifact.file("variants/" + target.replace(":", "-") + "/model.stablehlo").read_bytes()
    assert any("XLA's own analysis" in note and "not measured" in note for note in report.notes)
    with pytest.raises(MismatchError, match=f"this machine has no {find_target(target).device}"):
        load(artifact.path)


@pytest.mark.full
@pytest.mark.parametrize("target", ["tpu:v5e", "tpu:v6e"])
def test_a_decoder_is_compiled_for_a_chip_that_is_not_here(target: str, tmp_path: Path) -> None:
    compile_model("smollm2-135m", target, tmp_path / "m.aicc", measure=False)
    artifact = Artifact.open(tmp_path / "m.aicc")
    prefill, decode = layout_of(artifact).programs
    assert (prefill.tokens, decode.tokens) == (128, 1)
    assert prefill.weights == decode.weights  # which are on the chip once
    assert decode.analysis["argument_bytes"] >= artifact.manifest.memory.weight_bytes
    assert prefill.analysis["operations"] > 50 * decode.analysis["operations"]


def test_a_size_known_only_at_run_time_is_refused_by_node(tmp_path: Path) -> None:
    source = one_node(tmp_path, "(float[2, 3] x) => (int64[2, n] y) { y = NonZero (x) }")
    with pytest.raises(UnsupportedError, match=r"NonZero \("):
        compile_model(source, "tpu:v5e", tmp_path / "m.aicc")
    assert not (tmp_path / "m.aicc").exists()


def test_an_operator_without_a_translation_is_refused_by_node_from_headers_too(tmp_path: Path) -> None:
    source = one_node(tmp_path, "(float[1, 1, 4, 4] x) => (float[1, 1, 1, 1] y) { y = GlobalLpPool (x) }")
    with pytest.raises(UnsupportedError, match=r"GlobalLpPool \(.+\) cannot be compiled to StableHLO"):
        compile_model(source, "tpu:v5e", tmp_path / "m.aicc")
    report = check_model(source, find_target("tpu:v5e"))
    assert not report.supported
    assert "GlobalLpPool" in report.refused[0].reason


def test_a_graph_that_only_the_whole_shows_to_be_wrong_is_refused(tmp_path: Path) -> None:
    text = "(float[1, 1, 4, 4] x, float[1, 1, 2, 2] w) => (float[1, 1, 4, 4] y) { y = Conv <strides = [0, 0]> (x, w) }"
    with pytest.raises(UnsupportedError, match="cannot be written as StableHLO"):
        compile_model(one_node(tmp_path, text), "tpu:host", tmp_path / "m.aicc")


def test_what_does_not_fit_the_chips_memory_is_said_by_its_compiler(tmp_path: Path) -> None:
    text = "(float[100000, 1] x, float[1, 100000] z) => (float[100000, 100000] y) { s = Add (x, z)  y = MatMul (s, s) }"
    with pytest.raises(ResourceError, match="does not fit the memory of TPU v5e"):
        compile_model(one_node(tmp_path, text), "tpu:v5e", tmp_path / "m.aicc")


def test_another_version_of_the_runtime_asks_for_a_new_compile(small: Artifact) -> None:
    variant = msgspec.structs.replace(small.variant(), requires={"jaxlib": "0.1.0"})
    judged = load_object(find_target("tpu:host").provider)().compatibility(variant)
    assert judged.fit is Fit.RECOMPILE
    assert "jaxlib 0.1.0" in judged.reason


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: bytes(len(data)), lambda data: b""])
def test_a_damaged_executable_is_refused_in_words(harm: Callable[[bytes], bytes], small: Artifact) -> None:
    (path,) = (small.path / "variants").rglob("*.bin")
    kept = path.read_bytes()
    try:
        path.write_bytes(harm(kept))
        with pytest.raises((IntegrityError, MismatchError)):
            load(small.path)
    finally:
        path.write_bytes(kept)


def test_a_weight_outside_the_weights_file_is_refused(small: Artifact) -> None:
    path = small.file(f"variants/{small.variant().name}/{LAYOUT_FILE}")
    kept, layout = path.read_bytes(), layout_of(small)
    (program,) = layout.programs
    beyond = tuple(msgspec.structs.replace(stored, offset=1 << 40) for stored in program.weights)
    path.write_bytes(msgspec.json.encode(Layout((msgspec.structs.replace(program, weights=beyond),))))
    provider = load_object(find_target("tpu:host").provider)()
    try:
        with pytest.raises(IntegrityError, match="outside"):
            provider.load(small, small.variant(), None)
    finally:
        path.write_bytes(kept)


def test_arrays_of_other_sizes_than_it_was_compiled_for_are_refused(small: Artifact) -> None:
    with load(small.path) as session, pytest.raises(UsageError, match=r"\[2, 64\]"):
        session.run({"x": np.zeros((3, 64), np.float32)})


@pytest.mark.parametrize("command", ["compile", "targets"])
def test_without_jax_the_extra_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError('No module named jax', name='jax')")
    source = one_node(tmp_path, "(float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    arguments = [source.path, "--target", "tpu:v5e"] if command == "compile" else ["--json"]
    aicc = [Path(sys.executable).with_name("aicc"), command, *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(aicc, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert "Traceback" not in done.stderr
    if command == "compile":
        assert (done.returncode, "pip install 'aicc[tpu]'" in done.stderr) == (4, True)
    else:
        rows = {row["name"]: row for row in json.loads(done.stdout)["targets"]}
        assert "pip install 'aicc[tpu]'" in rows["tpu:v6e"]["compiles_reason"]
        assert rows["openvino:cpu"]["compiles"]


def test_one_artifact_has_the_chips_executable_and_this_machines(tmp_path: Path) -> None:
    source = one_node(tmp_path, "(float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    compile_model(source, "tpu:v5e,tpu:v6e,tpu:host", tmp_path / "m.aicc")
    x = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)
    with load(tmp_path / "m.aicc") as session:
        assert session.target == "tpu:host"
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_processes_compile_beside_each_other_and_give_the_same_bytes(tmp_path: Path) -> None:
    """libtpu stays loaded in this process, and lets others have it."""
    source = one_node(tmp_path, "(float[16, 64] x, float[64, 32] w) => (float[16, 32] y) { y = MatMul (x, w) }")
    compile_model(source, "tpu:v5e", tmp_path / "here")
    command = [Path(sys.executable).with_name("aicc"), "compile", source.path, "--target", "tpu:v5e", "-o"]
    for name in ("one", "two"):
        subprocess.run([*command, tmp_path / name], check=True, capture_output=True)
    one, two = (Artifact.open(tmp_path / name).manifest.files for name in ("one", "two"))
    assert one == two
