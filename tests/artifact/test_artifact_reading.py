"""Nothing in an artifact is trusted: each lie gets one error that names the file or field, and the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from artifact_sample import decoder_facts, forge, forge_file, read_document, sealed

from aicc.compiler.graph_file import load_graph
from aicc.runtime.artifact import GRAPH_PATH, WEIGHTS_PATH, Artifact
from aicc.runtime.errors import AiccError, IntegrityError, MismatchError, UsageError

QUALITY = {"tokens": 9, "kl_mean": 0, "kl_p99": 0, "top1_agreement": 1, "ppl_reference": 1, "ppl": 1, "text": "t"}
LLM = msgspec.to_builtins(decoder_facts())


def refusal(artifact: Path, kind: type[AiccError] = IntegrityError) -> str:
    with pytest.raises(kind) as caught:
        Artifact.open(artifact)
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("relative", [GRAPH_PATH, WEIGHTS_PATH, "variants/cpu/program.bin", "tokenizer/tokenizer.json"])
def test_a_changed_byte_is_found_and_both_hashes_are_named(sample, relative):
    before = next(entry.sha256 for entry in Artifact.open(sample).manifest.files if entry.path == relative)
    content = bytearray((sample / relative).read_bytes())
    content[len(content) // 2] ^= 1
    (sample / relative).write_bytes(content)
    with pytest.raises(IntegrityError, match=f"{relative}.*sha256 is [0-9a-f]{{64}}.*manifest says {before}"):
        Artifact.open(sample).verify()


def test_a_changed_byte_in_the_manifest_is_found_at_open(sample):
    manifest = sample / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"weight_bytes": 20000', b'"weight_bytes": 20001'))
    assert "manifest.json" in refusal(sample)


@pytest.mark.parametrize("relative", [GRAPH_PATH, WEIGHTS_PATH, "report.json"])
def test_a_truncated_file_is_found_at_open(sample, relative):
    os.truncate(sample / relative, 100)
    assert f"{relative}: it has 100 bytes" in refusal(sample)


def test_a_missing_file_is_found_at_open(sample):
    (sample / GRAPH_PATH).unlink()
    assert GRAPH_PATH in refusal(sample)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_manifest_is_not_json(sample, size):
    content = (sample / "manifest.json").read_bytes()
    (sample / "manifest.json").write_bytes(content[:size])
    assert "manifest.json" in refusal(sample)


def test_a_manifest_larger_than_any_real_one_is_not_read(sample):
    os.truncate(sample / "manifest.json", 1 << 40)
    assert "larger than" in refusal(sample)


def test_a_later_major_version_says_upgrade(sample):
    forge(sample, format={"major": 2, "minor": 0, "codec": "new"}, files="laid out differently")
    with pytest.raises(MismatchError, match=r"format 2.*reads format 1.*Upgrade aicc"):
        Artifact.open(sample)


def test_an_earlier_major_version_says_compile_again(sample):
    forge(sample, format={"major": 0, "minor": 9})
    with pytest.raises(MismatchError, match="Compile the model again"):
        Artifact.open(sample)


def test_what_a_later_minor_version_adds_is_ignored(sample):
    forge(sample, format={"major": 1, "minor": 7}, invented={"deep": [1, None]}, source__invented=1)
    assert Artifact.open(sample).manifest.format.minor == 7


ESCAPES = [
    "../secret",
    "/etc/passwd",
    "graph/../../secret",
    "./report.json",
    "graph//model.onnx",
    "C:/x",
    "a\\b",
    "",
    "a\0b",
]


@pytest.mark.parametrize("path", [*ESCAPES, "", "a\0b", "graph/", ".hidden", "a" * 600, "line\nbreak", "model.onnx\n"])
def test_a_path_that_is_not_plainly_inside_is_refused(sample, path):
    forge(sample, files__0__path=path)
    assert "files[0].path" in refusal(sample)


def test_a_variant_file_that_is_not_listed_is_refused(sample):
    forge(sample, variants__0__files=["../../report.json"])
    assert "variants[0].files: '../../report.json'" in refusal(sample)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".x"])
def test_a_variant_cannot_be_named_like_a_path(sample, name):
    forge(sample, variants__0__name=name, variants__0__files=[])
    assert "variants[0].name" in refusal(sample)


@pytest.mark.parametrize("relative", [WEIGHTS_PATH, "manifest.json", "weights"])
def test_a_symlink_that_leads_outside_is_refused(sample, relative, tmp_path):
    (sample / relative).rename(tmp_path / "elsewhere")
    (sample / relative).symlink_to(tmp_path / "elsewhere")
    assert "leads outside" in refusal(sample)


def test_a_symlink_that_stays_inside_is_followed(sample):
    (sample / WEIGHTS_PATH).rename(sample / "weights" / "real.bin")
    (sample / WEIGHTS_PATH).symlink_to("real.bin")
    Artifact.open(sample).verify()


def test_an_artifact_reached_through_a_symlink_is_opened(sample, tmp_path):
    (tmp_path / "link.aicc").symlink_to(sample)
    Artifact.open(tmp_path / "link.aicc").verify()


def test_a_symlink_loop_is_refused(sample):
    (sample / WEIGHTS_PATH).unlink()
    (sample / WEIGHTS_PATH).symlink_to("model.bin")
    assert WEIGHTS_PATH in refusal(sample)


def test_a_pipe_in_place_of_a_file_does_not_hang(sample):
    (sample / "report.json").unlink()
    os.mkfifo(sample / "report.json")
    assert "not a regular file" in refusal(sample)


def test_a_file_listed_twice_is_refused(sample):
    files = read_document(sample)["files"]
    forge(sample, files=[*files, {**files[0], "path": files[0]["path"].upper()}])
    assert "twice" in refusal(sample)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "n" * 1000),
        ("name", "\x1b[31mred"),
        ("kind", "spaceship"),
        ("quantization", None),
        ("memory.weight_bytes", -1),
        ("memory.weight_bytes", 1 << 49),
        ("memory.weight_bytes", 10**400),
        ("memory.activation_bytes", 1e30),
        ("memory.kv_bytes_per_token", 0.5),
        ("source.sha256", "00"),
        ("source.sha256", "0" * 64 + "\n"),
        ("files.0.bytes", -5),
        ("files.0.sha256", "Z" * 64),
        ("variants", []),
        ("variants.0.target", "cpu"),
        ("signatures.main.inputs.0.dtype", "float99"),
        ("signatures.main.inputs.0.shape", [-1, 64]),
        ("signatures.main.inputs.0.shape", ["", 64]),
        ("signatures.main.inputs.0.shape", [1] * 100),
        ("signatures.main.outputs", []),
        ("producer", {"": "1"}),
        ("quality", {**QUALITY, "tokens": 0}),
        ("quality", {**QUALITY, "top1_agreement": 1.5}),
        ("quality", {**QUALITY, "ppl": 0}),
    ],
)
def test_an_absurd_value_is_refused_by_the_name_of_its_field(sample, field, value):
    forge(sample, **{field.replace(".", "__"): value})
    named = field.replace(".0", "[0]").replace("signatures.main", "signatures[...]")  # a map's key is not told
    assert named in refusal(sample)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"1e999", b"-1e999"])
def test_numbers_json_does_not_have_are_refused(sample, literal):
    document = sealed(read_document(sample)).replace(b'"weight_bytes": 20000', b'"weight_bytes": ' + literal)
    (sample / "manifest.json").write_bytes(document)
    refusal(sample)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_length", 0),
        ("context_length", 10**12),
        ("vocab_size", 0),
        ("layers", 0),
        ("layers", 1 << 40),
        ("kv_heads", 0),
        ("head_dim", -8),
        ("eos_token_ids", [-1]),
        ("eos_token_ids", [100]),
        ("bos_token_id", 100),
        ("add_bos", True),
        ("weight_bytes_per_token", 1 << 49),
    ],
)
def test_absurd_decoder_facts_are_refused(sample, field, value):
    forge(sample, kind="decoder", llm={**LLM, field: value})
    assert f"llm.{field}" in refusal(sample)


def test_honest_decoder_facts_are_accepted(sample):
    forge(sample, kind="decoder", llm=LLM)
    assert Artifact.open(sample).manifest.llm == decoder_facts()


def test_kv_memory_that_layers_and_heads_cannot_need_is_refused(sample):
    forge(sample, kind="decoder", llm=LLM, memory__kv_bytes_per_token=1 << 30)
    assert "memory.kv_bytes_per_token" in refusal(sample)


@pytest.mark.parametrize(("kind", "llm"), [("decoder", None), ("tensors", LLM)])
def test_decoder_facts_belong_to_decoders(sample, kind, llm):
    forge(sample, kind=kind, llm=llm)
    assert "llm" in refusal(sample)


def test_two_tensors_of_one_name_are_refused(sample):
    spec = {"name": "x", "dtype": "float32", "shape": [1]}
    forge(sample, signatures__main__inputs=[spec, spec])
    assert "signatures.main.inputs" in refusal(sample)


def test_only_listed_files_can_be_reached(pristine):
    artifact = Artifact.open(pristine)
    for path in ("manifest.json", "timings.json", "../pristine", "weights"):
        with pytest.raises(IntegrityError, match="does not list"):
            artifact.file(path)


def test_a_variant_it_was_not_compiled_for_names_those_there_are(pristine):
    with pytest.raises(MismatchError, match=r"compiled for null:cpu, not for openvino:gpu.*--target openvino:gpu"):
        Artifact.open(pristine).variant("openvino:gpu")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "there is nothing there"),
        (lambda path: path.mkdir(), "the folder has no manifest.json"),
        (lambda path: path.write_bytes(b"GGUF\x03\0\0\0"), "GGUF file, a source to compile"),
        (lambda path: path.write_bytes(b""), "it is a single file"),
        (lambda path: (path.mkdir(), (path / "config.json").touch()), "a model folder, a source to compile"),
        (lambda path: os.mkfifo(path), "neither a folder nor a file"),
    ],
)
def test_what_is_not_an_artifact_is_called_what_it_is(tmp_path, make, found):
    make(tmp_path / "thing")
    assert found in refusal(tmp_path / "thing", UsageError)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
def test_a_path_that_cannot_exist_is_a_usage_error(path):
    with pytest.raises(UsageError, match="not an artifact"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "/etc/passwd"),
        ("location", "../weights/model.bin"),
        ("location", "weights/../weights/model.bin"),
        ("offset", "-64"),
        ("offset", "1"),
        ("offset", "1048576"),
        ("offset", "many"),
        ("length", "1"),
        ("length", "99999999999"),
    ],
)
def test_a_graph_cannot_refer_to_anything_but_its_place_in_the_weights(sample, key, value):
    proto = onnx.load_model(sample / GRAPH_PATH, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    next(field for field in tensor.external_data if field.key == key).value = value
    forge_file(sample, GRAPH_PATH, proto.SerializeToString())
    with pytest.raises(IntegrityError, match=GRAPH_PATH):
        load_graph(Artifact.open(sample))


@pytest.mark.parametrize("dims", [[-512, -64], [1 << 40, 1 << 40], [512, 63], []])
def test_a_graph_cannot_lie_about_the_shape_of_a_stored_tensor(sample, dims):
    proto = onnx.load_model(sample / GRAPH_PATH, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    forge_file(sample, GRAPH_PATH, proto.SerializeToString())
    with pytest.raises(IntegrityError, match=r"layer\.weight"):
        load_graph(Artifact.open(sample))


@pytest.mark.parametrize("message", ["node", "graph"])
def test_a_graph_that_uses_what_nothing_defines_is_refused(sample, message):
    proto = onnx.load_model(sample / GRAPH_PATH, load_external_data=False)
    if message == "node":
        proto.graph.node[-1].input[0] = "nowhere"
    else:
        proto.graph.output[0].name = "nowhere"
    forge_file(sample, GRAPH_PATH, proto.SerializeToString())
    with pytest.raises(IntegrityError, match="'nowhere' is used and nothing defines it"):
        load_graph(Artifact.open(sample))


def test_a_graph_that_was_changed_is_not_parsed(sample):
    content = bytearray((sample / GRAPH_PATH).read_bytes())
    content[50] ^= 0xFF
    (sample / GRAPH_PATH).write_bytes(content)
    with pytest.raises(IntegrityError, match="sha256"):
        load_graph(Artifact.open(sample))


def test_weights_cut_short_after_opening_are_noticed_before_they_are_touched(sample):
    artifact = Artifact.open(sample)
    os.truncate(sample / WEIGHTS_PATH, 4096)
    with pytest.raises(IntegrityError, match=r"weights/model\.bin"):
        artifact.weights()


def test_a_report_that_is_not_an_object_is_refused(sample):
    forge_file(sample, "report.json", b"[1, 2]")
    with pytest.raises(IntegrityError, match=r"report\.json"):
        Artifact.open(sample).report()


def test_reading_imports_nothing_heavy():
    program = "import sys, aicc.runtime.artifact; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"onnx", "onnx_ir", "openvino", "torch"} & set(modules)


def test_the_sample_is_honest(pristine):
    load_graph(Artifact.open(pristine))
    assert np.frombuffer(Artifact.open(pristine).weights(), np.uint8).any()
