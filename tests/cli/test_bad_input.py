"""Bad input, class by class: one line that names the cause and the remedy, the right exit code, nothing left behind."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from aicc_command import Run, run_aicc, save_onnx
from onnx import TensorProto, helper

from aicc.compiler.models import pull
from aicc.runtime.artifact import Artifact
from aicc.runtime.manifest import FileEntry, encode_manifest


@dataclass(frozen=True)
class Bench:
    """What a case may use: a folder of its own, and good models to spoil."""

    folder: Path
    tensors: Path
    decoder: Path
    gguf: Path

    @property
    def output(self) -> Path:
        """Where a compile would put its artifact."""
        return self.folder / "out" / "made.aicc"

    def artifact(self) -> Path:
        """A copy of the artifact of tensors, to damage."""
        return Path(shutil.copytree(self.tensors, self.folder / "copy.aicc"))

    def array(self, name: str, value: Any, **options: Any) -> Path:
        path = self.folder / f"{name}.npy"
        np.save(path, value, **options)
        return path


@pytest.fixture
def bench(tmp_path: Path, tensors_artifact: Path, demo_artifact: Artifact) -> Bench:
    made = Bench(tmp_path, tensors_artifact, demo_artifact.path, pull("smollm2-135m"))
    made.output.parent.mkdir()
    return made


# Models to compile.


def truncated_gguf(b: Bench) -> list:
    path = b.folder / "cut.gguf"
    with b.gguf.open("rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    return ["compile", path, "-o", b.output]


def weights_outside_the_folder(b: Bench) -> list:
    path = b.folder / "model" / "escape.onnx"
    path.parent.mkdir()
    (b.folder / "secret.bin").write_bytes(bytes(64))
    node = helper.make_node("Add", ["x", "w"], ["y"])
    save_onnx(path, [node], {"x": [16]}, {"y": [16]}, {"w": np.zeros(16, np.float32)})
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": "64"}.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return ["compile", path, "-o", b.output]


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def hugging_face_folder(b: Bench, header: Mapping[str, Any], body: bytes, **config: Any) -> list:
    folder = b.folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return ["compile", folder, "-o", b.output]


def safetensors_header_that_lies(b: Bench) -> list:
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [100, 64], "data_offsets": [0, 25_600]}}
    return hugging_face_folder(b, header, bytes(100))


def config_with_a_billion_layers(b: Bench) -> list:
    header = {"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}
    return hugging_face_folder(b, header, bytes(256), num_hidden_layers=1_000_000_000)


def unknown_architecture(b: Bench) -> list:
    header = {"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}
    return hugging_face_folder(b, header, bytes(256), architectures=["AbacusForCausalLM"], model_type="abacus")


def operator_nobody_knows(command: str) -> Callable[[Bench], list]:
    def make(b: Bench) -> list:
        path = b.folder / "custom.onnx"
        node = helper.make_node("Frobnicate", ["x"], ["y"], name="the_odd_one", domain="com.example")
        save_onnx(path, [node], {"x": [4]}, {"y": [4]}, domains=("com.example",))
        return [command, path, *(["-o", b.output] if command == "compile" else [])]

    return make


def pickle_named_gguf(b: Bench) -> list:
    path = b.folder / "model.gguf"
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'echo'\ntR.")
    return ["compile", path, "-o", b.output]


def group_size_without_groups(b: Bench) -> list:
    return ["compile", b.gguf, "--quant", "fp32", "--group-size", "32", "-o", b.output]


# Artifacts to run.


def changed_byte_in_the_weights(b: Bench) -> list:
    path = b.artifact()
    weights = path / "weights" / "model.bin"
    data = bytearray(weights.read_bytes())
    data[3] ^= 1
    weights.write_bytes(data)
    return ["inspect", path, "--verify"]


def changed_byte_in_the_manifest(b: Bench) -> list:
    path = b.artifact()
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"sha256": "', '"sha256": "0', 1).replace("0", "1", 1))
    return ["run", path]


def file_cut_short(b: Bench) -> list:
    path = b.artifact()
    graph = path / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    return ["run", path]


def report(content: str) -> Callable[[Bench], list]:
    """An artifact whose manifest vouches for a report that nobody would write."""

    def damaged_report(b: Bench) -> list:
        path = b.artifact()
        data = content.encode()
        (path / "report.json").write_bytes(data)
        manifest = Artifact.open(b.tensors).manifest
        entry = FileEntry("report.json", len(data), hashlib.sha256(data).hexdigest())
        files = tuple(entry if old.path == entry.path else old for old in manifest.files)
        (path / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
        return ["inspect", path]

    return damaged_report


def artifact_of_a_later_major_version(b: Bench) -> list:
    path = b.artifact()
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"major": 1', '"major": 2'))
    return ["inspect", path]


def device_it_was_not_compiled_for(b: Bench) -> list:
    return ["run", b.decoder, "hello", "--device", "openvino:npu"]


def prompt_longer_than_the_context(b: Bench) -> list:
    return ["run", b.decoder, "word " * 9000, "--raw"]


def temperature_below_zero(b: Bench) -> list:
    return ["run", b.decoder, "hello", "--temperature", "-1"]


def temperature_that_is_no_number(b: Bench) -> list:
    return ["run", b.decoder, "hello", "--temperature", "nan"]


def prompt_for_a_model_of_tensors(b: Bench) -> list:
    return ["run", b.tensors, "hello"]


def arrays_for_a_language_model(b: Bench) -> list:
    return ["run", b.decoder, "--input", f"x={b.array('x', np.ones(3))}"]


def of_no_effect(model: str, command: str, *options: str) -> Callable[[Bench], list]:
    """Options that mean nothing to this kind of model, beside what the command needs."""

    def options_of_no_effect(b: Bench) -> list:
        needed = ["--json"] if model == "tensors" else ["hello"] if command == "run" else []
        return [command, getattr(b, model), *needed, *options]

    return options_of_no_effect


# Arrays for models of tensors.


def array_missing(b: Bench) -> list:
    return ["run", b.tensors, "--input", f"x={b.array('x', np.ones((2, 4), np.float32))}", "--json"]


def array_of_another_type(b: Bench) -> list:
    x, y = b.array("x", np.ones((2, 4))), b.array("y", np.ones(3, np.float32))
    return ["run", b.tensors, "--input", f"x={x}", "--input", f"y={y}", "--json"]


def array_with_python_objects(b: Bench) -> list:
    path = b.array("x", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return ["run", b.tensors, "--input", f"x={path}", "--json"]


def array_header_that_lies(b: Bench) -> list:
    path = b.array("x", np.ones((2, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 4)", b"(9, 9)"))
    return ["run", b.tensors, "--input", f"x={path}", "--json"]


def array_that_is_not_there(b: Bench) -> list:
    return ["run", b.tensors, "--input", f"x={b.folder / 'nothing.npy'}", "--json"]


CASES: list[tuple[Callable[[Bench], list], int, str]] = [
    (truncated_gguf, 7, "cut.gguf"),
    (weights_outside_the_folder, 7, "../secret.bin"),
    (safetensors_header_that_lies, 7, "model.embed_tokens.weight"),
    (config_with_a_billion_layers, 7, "num_hidden_layers"),
    (unknown_architecture, 3, "abacus"),
    (operator_nobody_knows("compile"), 3, "the_odd_one"),
    (operator_nobody_knows("check"), 3, "the_odd_one"),
    (pickle_named_gguf, 3, "pickle"),
    (group_size_without_groups, 2, "--group-size"),
    (changed_byte_in_the_weights, 7, "weights/model.bin"),
    (changed_byte_in_the_manifest, 7, "manifest.json"),
    (file_cut_short, 7, "model.onnx"),
    (report('{"target": "t", "quantization": "q", "phases": [{"name": "import", "passes": ["x"]}]}'), 7, "passes[0]"),
    (report('{"target": "t", "quantization": "q", "phases": [{"name": "import", "passes": 3}]}'), 7, "passes"),
    (report('{"target": "t", "quantization": "q", "phases": ["import"]}'), 7, "phases[0]"),
    (report("[]"), 7, "report.json"),
    (artifact_of_a_later_major_version, 4, "format 2"),
    (device_it_was_not_compiled_for, 4, "openvino:npu"),
    (prompt_longer_than_the_context, 2, "context holds 8192"),
    (temperature_below_zero, 2, "temperature"),
    (temperature_that_is_no_number, 2, "temperature"),
    (prompt_for_a_model_of_tensors, 2, "--input"),
    (arrays_for_a_language_model, 2, "--input"),
    *(
        (of_no_effect("tensors", "run", *words), 2, f"{words[0]} would have no effect")
        for words in (
            ["--temperature", "0.5"],
            ["--top-p", "0.5"],
            ["--top-k", "5"],
            ["--seed", "1"],
            ["--stop", "x"],
            ["--system", "x"],
            ["--raw"],
            ["--max-tokens", "256"],  # even where it says what is the default
            ["--kv-tokens", "64"],
        )
    ),
    (of_no_effect("tensors", "run", "--seed", "1", "--raw"), 2, "--seed, --raw would have no effect"),
    (of_no_effect("tensors", "bench", "--prompt-tokens", "8"), 2, "--prompt-tokens would have no effect"),
    (of_no_effect("tensors", "bench", "--decode-tokens", "8"), 2, "--decode-tokens would have no effect"),
    (of_no_effect("decoder", "run", "--signature", "default"), 2, "--signature would have no effect"),
    (of_no_effect("decoder", "run", "--output-dir", "out"), 2, "--output-dir would have no effect"),
    (of_no_effect("decoder", "bench", "--input", "x=x.npy"), 2, "--input would have no effect"),
    (array_missing, 2, "'y'"),
    (array_of_another_type, 2, "float64"),
    (array_with_python_objects, 2, "x.npy"),
    (array_header_that_lies, 2, "x.npy"),
    (array_that_is_not_there, 2, "nothing.npy"),
]


@pytest.mark.parametrize(("make", "code", "named"), CASES, ids=lambda v: getattr(v, "__qualname__", "").split(".")[0])
def test_bad_input(aicc: Run, bench: Bench, make: Callable[[Bench], list], code: int, named: str):
    words = make(bench)
    before = everything_in(bench.folder)
    done = aicc(*words)
    complaint = done.err.splitlines()[-1]
    assert (done.code, named in complaint) == (code, True), done.err
    assert complaint.startswith("aicc: ")
    assert sum(line.startswith("aicc: ") for line in done.err.splitlines()) == 1
    assert everything_in(bench.folder) == before
    assert words[0] == "check" or done.out == ""


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("name", "room"), [("compile", 64), ("compile", 4000), ("html", 64), ("run", 64)])
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    name: str,
    room: int,
    tmp_path: Path,
    onnx_file: Path,
    tensors_artifact: Path,
    arrays: dict[str, Path],
):
    out = tmp_path / "out"
    words = {
        "compile": ["compile", onnx_file, "-o", out / "made.aicc"],
        "html": ["inspect", tensors_artifact, "--html", out / "page.html"],
        "run": ["run", tensors_artifact, *inputs_of(arrays), "--output-dir", out],
    }[name]
    out.mkdir()
    done = run_aicc(*words, file_limit=room)
    assert done.code == 5, done.err
    assert done.err.splitlines()[-1].startswith("aicc: ")
    assert list(out.iterdir()) == []


def inputs_of(arrays: dict[str, Path]) -> list[str]:
    return [word for name, path in arrays.items() for word in ("--input", f"{name}={path}")]
