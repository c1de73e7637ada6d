"""MODEL on the command line is found by what it holds, whatever it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_samples import SIZES, write_gguf
from miniatures import make_decoder
from test_onnx_importer import make_model

from aicc.compiler.models import pull
from aicc.compiler.sources import file_kind, resolve
from aicc.runtime.errors import AiccError, IntegrityError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, make_decoder("llama", **SIZES, num_hidden_layers=1), "llama")


def test_a_file_is_known_by_its_content_not_its_name(gguf_file: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "model.onnx"
    disguised.write_bytes(gguf_file.read_bytes())
    assert resolve(str(disguised)).kind == "gguf"
    other = tmp_path / "weights.txt"
    other.write_bytes(make_model().SerializeToString())
    assert resolve(str(other)).kind == "onnx"


def test_a_folder_with_config_and_safetensors_is_hugging_face(tmp_path: Path) -> None:
    make_decoder("llama", num_hidden_layers=1).save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    assert (source.kind, source.path) == ("huggingface", tmp_path)


def test_a_folder_with_one_model_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "only.onnx").write_bytes(make_model().SerializeToString())
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)).path == tmp_path / "only.onnx"


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(make_model().SerializeToString())
    with pytest.raises(UsageError, match=r"2 models: a\.onnx, b\.onnx"):
        resolve(str(tmp_path))


def test_a_pulled_name_carries_package_version_and_licence() -> None:
    source = resolve("silero-vad-16k")
    assert source.path == pull("silero-vad-16k")
    assert (source.kind, source.name, source.revision, source.licence) == (
        "onnx",
        "silero-vad-16k",
        "silero-vad==6.2.3",
        "MIT",
    )


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", IntegrityError, "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", UnsupportedError, "Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 60, UnsupportedError, "PyTorch checkpoint"),
        (b"\x80\x04\x95" + b"\0" * 60, UnsupportedError, "pickle"),
        (b"<!DOCTYPE html>", UnsupportedError, "web page"),
        (b'{"a": 1}', UnsupportedError, "JSON"),
        ((20).to_bytes(8, "little") + b'{"w": {}}' + b" " * 20, UnsupportedError, "safetensors"),
        (b"\x93NUMPY" + b"\0" * 60, UnsupportedError, "neither GGUF nor ONNX"),
        (b"\x08\x0a", UnsupportedError, "neither GGUF nor ONNX"),
        (bytes(range(256)), UnsupportedError, "neither GGUF nor ONNX"),
    ],
)
def test_what_is_no_model_is_told_what_it_looks_like(tmp_path: Path, content: bytes, error: type, says: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        resolve(str(path))


@pytest.mark.parametrize("kept", [20, 60, 100])
def test_a_truncated_onnx_says_so(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model().SerializeToString()[:kept])
    with pytest.raises(IntegrityError, match="ends too early"):
        file_kind(path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsupportedError, match="pickles"):
        resolve(str(tmp_path))


def test_an_artifact_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    (tmp_path / "variants").mkdir()
    with pytest.raises(UsageError, match="already compiled"):
        resolve(str(tmp_path))


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither config\.json"):
        resolve(str(tmp_path))


def test_a_name_nothing_has_lists_what_there_is() -> None:
    with pytest.raises(UsageError) as refused:
        resolve("no-such-thing")
    assert "org/name" in refused.value.remedy
    assert "smollm2-135m" in refused.value.remedy


@pytest.mark.parametrize("model", ["./model.gguf", "../models/model.onnx", "/models/model.gguf", "models/.hidden"])
def test_a_path_where_nothing_is_is_no_hub_id(model: str) -> None:
    with pytest.raises(UsageError, match="there is no file, folder or known model"):
        resolve(model)


@pytest.mark.parametrize("model", ["org/name", "org/name/model.gguf"])
def test_a_hub_id_without_network_says_so(model: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from aicc.compiler.sources import resolve\n"
        "from aicc.runtime.errors import UsageError\n"
        "try: resolve(sys.argv[1])\n"
        "except UsageError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script, model], capture_output=True, text=True, env=environment)
    assert "no file or folder org/name, it is not in the local hub cache, and offline mode is on" in result.stdout
    assert "give its path" in result.stdout


def test_a_hub_snapshot_in_the_cache_is_used_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    make_decoder("llama", num_hidden_layers=1).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    script = "import sys; from aicc.compiler.sources import resolve; s = resolve('org/name'); print(s.kind, s.revision)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ["huggingface", "0123abc"], result.stderr


def test_a_device_is_no_model() -> None:
    with pytest.raises(AiccError, match="/dev/null"):
        resolve("/dev/null")
