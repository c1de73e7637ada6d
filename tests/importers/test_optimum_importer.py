"""The second importer exports what the first lacks, in an environment of its own."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from aicc.compiler.importers import Source, import_model
from aicc.compiler.importers.optimum import environment, export_openvino
from aicc.compiler.models import pull
from aicc.runtime.errors import UnsupportedError, UsageError


@pytest.fixture
def neox(tmp_path: Path) -> tuple[Path, transformers.PreTrainedModel]:
    """A miniature of an architecture the first importer refuses."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=211, hidden_size=72, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "neox")
    return tmp_path / "neox", model


@pytest.mark.full
def test_an_architecture_the_first_importer_lacks_is_exported_exactly(neox, tmp_path: Path) -> None:
    import openvino

    folder, model = neox
    with pytest.raises(UnsupportedError, match="gpt_neox"):
        import_model(Source(folder, "huggingface", "neox"))
    xml = export_openvino(Source(folder, "huggingface", "neox"), tmp_path / "ir")

    ids = np.random.default_rng(0).integers(3, 200, (1, 12))
    compiled = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(12)[None]}
    feed |= {"beam_idx": np.zeros(1, np.int32)}
    names = [value.get_any_name() for value in compiled.inputs]
    found = compiled({name: feed[name] for name in names})["logits"]

    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.from_numpy(ids)).logits.numpy(), atol=1e-4)


@pytest.mark.full
def test_an_export_that_fails_says_why_and_leaves_nothing(neox, tmp_path: Path) -> None:
    folder, _ = neox
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"gpt_neox"', '"made_up"'))
    with pytest.raises(UnsupportedError, match="cannot export neox"):
        export_openvino(Source(folder, "huggingface", "neox"), tmp_path / "ir")
    assert [path.name for path in tmp_path.iterdir()] == ["neox"]


@pytest.mark.full
def test_the_environment_is_made_once_and_runs_apart_from_ours() -> None:
    python = environment()
    assert environment() == python
    script = "import optimum.intel, transformers; print(transformers.__file__)"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert str(python.parents[1]) in result.stdout


def test_only_hugging_face_folders_are_exported(tmp_path: Path) -> None:
    source = Source(pull("silero-vad"), "onnx", "silero-vad")
    with pytest.raises(UnsupportedError, match="silero-vad is onnx"):
        export_openvino(source, tmp_path / "ir")


def test_what_it_exports_is_no_graph(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="OpenVINO IR, not a graph") as refused:
        import_model(Source(tmp_path, "huggingface", "any"), importer="optimum")
    assert "openvino target" in refused.value.remedy


def test_an_installation_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    lines: list[str] = []
    with pytest.raises(UsageError, match="cannot be installed: ERROR: No matching distribution"):
        environment(lines.append)
    assert "MB to download" in lines[0]
    assert list((tmp_path / "aicc" / "envs").iterdir()) == []


def test_a_folder_that_exists_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        export_openvino(Source(tmp_path, "huggingface", "any"), tmp_path)
