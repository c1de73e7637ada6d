"""``aicc pull``, ``aicc check`` and ``aicc compile``, on small models and the demo model's headers."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from aicc_command import Run, save_onnx
from onnx import TensorProto, helper

from aicc.cli import options as offered
from aicc.cli.inspection import CompileDocument
from aicc.compiler.check import CheckReport
from aicc.compiler.importers import IMPORTERS
from aicc.compiler.models import MODELS
from aicc.compiler.pipeline import PHASES
from aicc.compiler.quantization.policy import QUANTS
from aicc.runtime.artifact import GRAPH_PATH, Artifact
from aicc.runtime.target import KV_KINDS


def test_the_choices_are_the_compilers():
    assert offered.PHASES == PHASES
    assert offered.QUANTS == QUANTS
    assert offered.IMPORTERS == IMPORTERS
    assert ("auto", *KV_KINDS) == offered.KVS


def test_a_kv_cache_that_the_target_or_the_model_lacks_is_refused(aicc: Run, onnx_file: Path, tmp_path: Path):
    done = aicc("compile", onnx_file, "-o", tmp_path / "m.aicc", "--kv", "int8")
    assert (done.code, (tmp_path / "m.aicc").exists()) == (2, False)
    assert "only decoders have a KV cache" in done.err
    npu = aicc("compile", onnx_file, "-o", tmp_path / "m.aicc", "--kv", "int8", "--target", "openvino:npu")
    assert npu.code == 2
    assert "openvino:npu has no KV cache of int8" in npu.err


def test_a_choice_of_activations_that_the_target_does_not_leave_is_refused(aicc: Run, onnx_file: Path, tmp_path: Path):
    done = aicc("compile", onnx_file, "-o", tmp_path / "m.aicc", "--activations", "int16")
    assert (done.code, done.out) == (2, "")
    assert "openvino:cpu does not quantise activations to int16" in done.err
    assert not (tmp_path / "m.aicc").exists()


@pytest.mark.parametrize("command", ["check", "compile"])
def test_a_partition_that_the_target_does_not_know_is_refused(aicc: Run, onnx_file: Path, command: str):
    done = aicc(command, onnx_file, "--partition", "host")
    assert (done.code, done.out) == (2, "")
    assert "openvino:cpu runs a graph whole or not at all. Leave --partition out." in done.err


def test_what_is_missing_to_compile_is_said_before_the_model_is_looked_for(aicc: Run, tmp_path: Path):
    """None of these names a model there is."""
    (tmp_path / "notes.aicc").write_text("mine")
    model = ("compile", tmp_path / "no-such-model")
    for options, code, message in (
        (("--target", "cpu", "--cc", "no-such-compiler"), 4, "no C compiler 'no-such-compiler'"),
        (("--target", "ethos-u", "--calibrate", tmp_path / "x.npz"), 2, "x.npz does not exist"),
        (("-o", tmp_path / "notes.aicc"), 2, "is a file, so it is not replaced"),
    ):
        done = aicc(*model, *options)
        assert (done.code, message in done.err) == (code, True), done.err
        assert "reading" not in done.err


def test_a_compile_says_it_loads_or_measures_only_where_it_does(aicc: Run, onnx_file: Path, tmp_path: Path):
    loaded = {}
    for target in ("openvino:cpu", "groq:lpu"):
        done = aicc("compile", onnx_file, "-o", tmp_path / "m.aicc", "--target", target)
        assert done.code == 0, done.err
        loaded[target] = "loading it once" in done.err
    assert loaded == {"openvino:cpu": True, "groq:lpu": False}


def test_a_model_that_is_refused_as_a_whole_is_said_so(aicc: Run, onnx_file: Path):
    done = aicc("check", onnx_file, "--target", "cerebras")
    assert done.code == 3
    assert "cerebras:wse3 cannot run affine.onnx: cerebras takes decoders alone so far" in done.err


def test_outputs_have_the_sizes_that_follow_from_those_of_the_inputs(aicc: Run, onnx_file: Path, tmp_path: Path):
    assert aicc("compile", onnx_file, "-o", tmp_path / "m.aicc", "--target", "openvino:npu", "--size", "n=5").code == 0
    outputs = Artifact.open(tmp_path / "m.aicc").manifest.signatures["default"].outputs
    assert [output.shape for output in outputs] == [(5, 3), (5, 3)]
    assert "sum/0 float32[5, 3]" in aicc("inspect", tmp_path / "m.aicc").out


def test_sizes_are_for_targets_of_fixed_shapes_and_for_dimensions_the_model_leaves_open(aicc: Run, tmp_path: Path):
    relu = helper.make_node("Relu", ["x"], ["y"])
    save_onnx(tmp_path / "open.onnx", [relu], {"x": ["batch", "width"]}, {"y": ["batch", "width"]})
    model = ("compile", tmp_path / "open.onnx", "-o", tmp_path / "m.aicc", "--target")
    for target, sizes, message in (
        ("openvino:cpu", ("width=8",), "takes any sizes"),
        ("openvino:npu", (), "--size width=N"),
        ("openvino:npu", ("width=8,16",), "several numbers, which only the context of a decoder can have"),
        ("openvino:npu", ("width=8", "depth=2"), "no size called 'depth'"),
        ("openvino:npu", ("width=-1",), "NAME=N"),
    ):
        done = aicc(*model, target, *(word for size in sizes for word in ("--size", size)))
        assert (done.code, (tmp_path / "m.aicc").exists()) == (2, False)
        assert message in " ".join(done.err.split())
    assert aicc(*model, "openvino:npu", "--size", "width=8").code == 0
    (given,) = Artifact.open(tmp_path / "m.aicc").manifest.signatures["default"].inputs
    assert given.shape == (1, 8)
    check = aicc("check", tmp_path / "open.onnx", "--target", "openvino:npu", "--size", "width=8")
    assert check.code == 0


def test_a_check_tells_the_bytes_of_the_kv_cache_that_is_asked_for(aicc: Run):
    found = {}
    for kv in ("auto", "fp32", "int8"):
        done = aicc("check", "smollm2-135m", "--target", "cpu", "--kv", kv, "--json")
        found[kv] = msgspec.json.decode(done.out, type=CheckReport).kv_bytes_per_token
    assert found == {"auto": 23_040, "fp32": 46_080, "int8": 12_240}


def test_pull_prints_the_path_of_a_model_and_lists_what_there_is(aicc: Run):
    path = aicc("pull", "smollm2-135m")
    assert path.code == 0
    assert Path(path.out.strip()).read_bytes()[:4] == b"GGUF"
    listing = aicc("pull")
    assert all(name in listing.out for name in MODELS)


def test_compile_prints_the_artifact_and_says_on_stderr_what_it_did(aicc: Run, onnx_file: Path, tmp_path: Path):
    done = aicc("compile", onnx_file, "-o", tmp_path / "made.aicc", "--target", "reference")
    assert (done.code, done.out) == (0, f"{tmp_path / 'made.aicc'}\n")
    for phase in ("import", "optimize", "quantize", "lower", "package"):
        assert f"{phase}: " in done.err
    assert Artifact.open(tmp_path / "made.aicc").manifest.variants[0].target == "reference:cpu"


def test_without_a_name_the_artifact_of_another_target_is_not_replaced(
    aicc: Run, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    made = Path(f"{onnx_file.stem}.aicc")
    assert aicc("compile", onnx_file, "--target", "null").code == 0
    before = Artifact.open(made).manifest
    refused = aicc("compile", onnx_file, "--target", "reference")
    assert (refused.code, refused.out) == (2, "")
    assert f"{made} is there, compiled for null:host. Name another with --output" in refused.err
    assert Artifact.open(made).manifest == before
    assert aicc("compile", onnx_file, "--target", "null").code == 0
    assert aicc("compile", onnx_file, "--target", "reference", "--output", made).code == 0
    assert [variant.target for variant in Artifact.open(made).manifest.variants] == ["reference:cpu"]


def test_a_graph_that_is_not_wanted_is_left_out_and_one_that_is_all_there_is_is_not(
    aicc: Run, onnx_file: Path, tmp_path: Path
):
    assert aicc("compile", onnx_file, "-o", tmp_path / "lean.aicc", "--no-graph").code == 0
    assert not Artifact.open(tmp_path / "lean.aicc").has(GRAPH_PATH)
    done = aicc("compile", onnx_file, "-o", tmp_path / "none.aicc", "--no-graph", "--target", "reference")
    assert (done.code, (tmp_path / "none.aicc").exists()) == (2, False)
    assert "reference:cpu runs the portable graph itself" in done.err


def test_the_object_of_a_compile_is_the_report_with_its_times(aicc: Run, onnx_file: Path, tmp_path: Path):
    done = aicc("compile", onnx_file, "-o", tmp_path / "made.aicc", "--json")
    document = msgspec.json.decode(done.out, type=CompileDocument)
    assert set(json.loads(done.out)) == {"artifact", "bytes", "report"}
    assert document.artifact == str(tmp_path / "made.aicc")
    assert document.bytes == sum(path.stat().st_size for path in Path(document.artifact).rglob("*.*") if path.is_file())
    assert sum(phase.seconds for phase in document.report.phases) > 0
    assert {row.op for row in document.report.coverage} >= {"MatMul", "Add", "Relu"}


def test_files_whose_names_are_no_text_are_compiled_and_shown(aicc: Run, onnx_file: Path, tmp_path: Path):
    source, made = (tmp_path / os.fsdecode(name) for name in (b"m\xff.onnx", b"m\xff.aicc"))
    shutil.copy(onnx_file, source)
    done = aicc("compile", source, "-o", made, "--target", "reference", "--json")
    assert json.loads(done.out)["artifact"] == f"{tmp_path}/m\ufffd.aicc"
    assert Artifact.open(made).manifest.source.name == "m\ufffd.onnx"
    assert json.loads(aicc("inspect", made, "--json").out)["path"] == f"{tmp_path}/m\ufffd.aicc"


def test_a_compile_can_stop_early_and_leave_its_graphs(aicc: Run, onnx_file: Path, tmp_path: Path):
    done = aicc("compile", onnx_file, "--stop-after", "quantize", "--dump-graph", tmp_path / "graphs", "--json")
    assert json.loads(done.out)["artifact"] == ""
    assert sorted(path.name for path in (tmp_path / "graphs").iterdir()) == [
        "0-import.txt",
        "1-optimize.txt",
        "2-quantize.txt",
    ]
    assert "MatMul" in (tmp_path / "graphs" / "2-quantize.txt").read_text()


def test_a_check_does_not_take_every_unknown_dimension_for_a_prompt(aicc: Run):
    done = aicc("check", "minilm-l6-int8", "--json")
    assert msgspec.json.decode(done.out, type=CheckReport).memory_bytes < 1e9  # it has 23 MB of weights


def test_check_tells_from_headers_what_the_artifact_will_be(aicc: Run, demo_artifact: Artifact):
    done = aicc("check", "smollm2-135m", "--json")
    assert done.code == 0
    report = msgspec.json.decode(done.out, type=CheckReport)
    manifest = demo_artifact.manifest
    assert set(json.loads(done.out)) == {field.name for field in msgspec.structs.fields(CheckReport)}
    assert (report.supported, report.fits, report.kind) == (True, True, "decoder")
    assert report.quantization == manifest.quantization
    assert report.weight_bytes == manifest.memory.weight_bytes
    assert report.weight_bytes_per_token == manifest.llm.weight_bytes_per_token
    assert report.kv_bytes_per_token == manifest.memory.kv_bytes_per_token
    assert report.memory_bytes > report.weight_bytes + 8192 * report.kv_bytes_per_token


def test_check_lists_every_refused_node_and_exits_with_3(aicc: Run, tmp_path: Path):
    path = tmp_path / "custom.onnx"
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first_odd_one", domain="com.example"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Twiddle", ["b"], ["y"], name="second_odd_one", domain="com.example"),
    ]
    save_onnx(path, nodes, {"x": [4]}, {"y": [4]}, domains=("com.example",))
    done = aicc("check", path, "--json")
    assert done.code == 3
    assert [(r["node"], r["op"]) for r in json.loads(done.out)["refused"]] == [
        ("first_odd_one", "com.example.Frobnicate"),
        ("second_odd_one", "com.example.Twiddle"),
    ]


@pytest.mark.parametrize("command", [("check",), ("compile", "-o", "m.aicc")], ids=["check", "compile"])
def test_a_decoder_is_refused_by_a_target_without_a_kv_cache(aicc: Run, command: tuple[str, ...]):
    done = aicc(*command, "smollm2-135m", "--target", "openvino:npu")
    assert done.code == 3
    assert "openvino:npu has no KV cache, so it cannot run a decoder" in done.err.splitlines()[-1]
    assert not Path("m.aicc").exists()


def test_four_terabytes_are_checked_without_reading_them_and_do_not_fit(aicc: Run, tmp_path: Path):
    path, side = tmp_path / "huge.onnx", 1_000_000
    save_onnx(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", side]}, {"y": ["n", side]})
    model = onnx.load(path)
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[side, side])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "huge.bin", "offset": "0", "length": str(4 * side**2)}.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(4 * side**2)  # takes no room on the disk
    done = aicc("check", path, "--json")
    assert done.code == 5
    assert json.loads(done.out)["weight_bytes"] == 4 * side**2
    assert "4.00 TB" in done.err.splitlines()[-1]
