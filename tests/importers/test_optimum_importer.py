"""The second importer exports what the first lacks, in an environment of its own.

An export takes minutes and gigabytes, so most tests start from exports kept in ``tests/data/optimum``:
miniatures of two architectures the first importer refuses, one with rotary embedding and one with
ALiBi slopes, each with the checkpoint it was made from. The `full` ones run the export itself.
"""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from aicc.compiler.check import check_model
from aicc.compiler.graph_file import load_graph
from aicc.compiler.importers import Source, import_model, optimum
from aicc.compiler.importers.optimum_environment import environment
from aicc.compiler.models import pull
from aicc.compiler.pipeline import compile_model
from aicc.runtime import load
from aicc.runtime.artifact import GRAPH_PATH, Artifact
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.target import find_target

EXPORTS = Path(__file__).parent.parent / "data" / "optimum"
IDS = np.random.default_rng(0).integers(3, 60, 40)

Exported = Callable[[str], Source]


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """A kept checkpoint as a source; its import finds the kept export instead of running one."""

    def unpack(name: str) -> Source:
        with zipfile.ZipFile(EXPORTS / f"{name}.zip") as kept:
            kept.extractall(tmp_path / name)

        def copy(source: Source, directory: Path, task: str, progress: object) -> Path:
            assert task == "text-generation-with-past"
            shutil.copytree(tmp_path / name / "ir", directory)
            return directory / "openvino_model.xml"

        monkeypatch.setattr(optimum, "export_openvino", copy)
        return Source(tmp_path / name / "source", "huggingface", name)

    return unpack


def published_logits(folder: Path) -> NDArray[np.float32]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", ["gpt_neox", "bloom"])
def test_an_unknown_architecture_is_compiled_through_optimum_and_gives_the_published_logits(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    source, told = exported(name), []
    report = compile_model(
        source, "openvino:cpu", tmp_path / "out.aicc", quant="fp32", progress=lambda phase, line: told.append(line)
    )

    assert any(f"mobius does not know this {name} model" in line for line in told)
    assert any(f"mobius does not know this {name} model" in line for line in report.notes)
    with load(tmp_path / "out.aicc") as model:
        np.testing.assert_allclose(model.logits(IDS.tolist()), published_logits(source.path), atol=1e-4)
        assert len(model.generate(IDS[:5].tolist(), max_tokens=4, temperature=0.0).token_ids) <= 4


def test_weights_get_their_formats_as_in_any_model_and_stay_in_the_shared_file(
    exported: Exported, tmp_path: Path
) -> None:
    source = exported("gpt_neox")
    report = compile_model(source, "openvino:cpu", tmp_path / "out.aicc", importer="optimum", quant="int8")

    assert "int8 by row" in report.quantization
    artifact = Artifact.open(tmp_path / "out.aicc")
    assert artifact.file("weights/model.bin").stat().st_size >= artifact.manifest.memory.weight_bytes
    with load(tmp_path / "out.aicc") as model:
        found, want = model.logits(IDS.tolist()), published_logits(source.path)
    assert (found.argmax(axis=1) == want.argmax(axis=1)).mean() > 0.8


def test_the_artifact_says_who_imported_it_and_that_it_has_no_portable_graph(
    exported: Exported, tmp_path: Path
) -> None:
    compile_model(exported("gpt_neox"), "openvino:cpu", tmp_path / "out.aicc", importer="optimum")
    artifact = Artifact.open(tmp_path / "out.aicc")
    artifact.verify()

    assert artifact.report()["importer"] == "optimum"
    assert artifact.manifest.producer["optimum-intel"] == optimum.VERSION
    assert "mobius-onnx" not in artifact.manifest.producer
    assert not artifact.has(GRAPH_PATH)
    with pytest.raises(UsageError, match="no portable graph"):
        load_graph(artifact)


def test_the_export_is_gone_when_the_imported_model_is(exported: Exported) -> None:
    imported = import_model(exported("gpt_neox"), "optimum")
    xml = imported.exported
    assert xml is not None
    assert xml.exists()
    assert (imported.llm.layers, imported.llm.kv_heads, imported.llm.head_dim) == (1, 4, 12)
    del imported
    assert not xml.parents[1].exists()


def test_check_tells_from_headers_what_an_import_would_take(exported: Exported, monkeypatch) -> None:
    source = exported("gpt_neox")
    monkeypatch.setattr(optimum, "export_openvino", None)  # nothing may be exported
    report = check_model(source, find_target("openvino:cpu"))

    assert report.supported
    assert report.importer == "optimum"
    assert any("openvino targets only" in note for note in report.notes)
    assert 0 < report.weight_bytes < 60_000  # as int8, of some 25,000 weights
    assert report.kv_bytes_per_token > 0


@pytest.mark.parametrize("importer", ["auto", "optimum"])
def test_other_families_are_refused_before_anything_is_exported(
    exported: Exported, tmp_path: Path, monkeypatch, importer: str
) -> None:
    source = exported("gpt_neox")
    monkeypatch.setattr(optimum, "export_openvino", None)
    for refused_by in (
        lambda: check_model(source, find_target("reference:cpu"), importer=importer),
        lambda: compile_model(source, "reference:cpu", tmp_path / "out.aicc", importer=importer),
    ):
        with pytest.raises(UnsupportedError) as refused:
            refused_by()
        assert "openvino" in refused.value.remedy
    assert not (tmp_path / "out.aicc").exists()


def test_an_architecture_neither_importer_knows_is_refused_in_both_names(exported: Exported) -> None:
    source = exported("gpt_neox")
    config = source.path / "config.json"
    config.write_text(config.read_text().replace('"gpt_neox"', '"made_up"'))
    with pytest.raises(UnsupportedError, match=r"'made_up' are not supported .* optimum-intel .* 'made_up'"):
        import_model(source)


def test_a_sliding_window_the_export_may_lose_ends_the_context(exported: Exported) -> None:
    source = exported("gpt_neox")
    config = source.path / "config.json"
    config.write_text(config.read_text().replace("{", '{"sliding_window": 32,', 1))
    imported = import_model(source, "optimum")
    assert imported.llm.context_length == 32
    assert any("sliding window" in note for note in imported.notes)


def test_only_hugging_face_folders_are_exported() -> None:
    with pytest.raises(UnsupportedError, match="silero-vad is onnx"):
        import_model(Source(pull("silero-vad"), "onnx", "silero-vad"), "optimum")


def test_an_installation_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"cannot be installed: ERROR: (No matching dist|ResolutionImp)"):
        environment(lines.append)
    assert "MB to download" in lines[0]
    assert list((tmp_path / "aicc" / "envs").iterdir()) == []


def unpacked(name: str, folder: Path) -> Source:
    with zipfile.ZipFile(EXPORTS / f"{name}.zip") as kept:
        kept.extractall(folder)
    return Source(folder / "source", "huggingface", name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["gpt_neox", "bloom"])
def test_an_export_compiles_from_the_checkpoint_alone(tmp_path: Path, name: str) -> None:
    source = unpacked(name, tmp_path)
    compile_model(source, "openvino:cpu", tmp_path / "out.aicc", quant="fp32")
    with load(tmp_path / "out.aicc") as model:
        np.testing.assert_allclose(model.logits(IDS.tolist()), published_logits(source.path), atol=1e-4)


@pytest.mark.full
def test_an_encoder_through_optimum_agrees_with_the_first_importer(tmp_path: Path) -> None:
    ids = np.arange(5, 35).reshape(2, 15)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    outputs = []
    for importer in ("mobius", "optimum"):
        compile_model("minilm-l6", "openvino:cpu", tmp_path / importer, importer=importer)
        with load(tmp_path / importer) as session:
            outputs.append(session.run(feed)["last_hidden_state"])
    np.testing.assert_allclose(*outputs, atol=1e-4)


@pytest.mark.full
def test_an_export_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    source = unpacked("gpt_neox", tmp_path)
    with pytest.raises(UnsupportedError, match="optimum-intel cannot export gpt_neox"):
        optimum.export_openvino(source, tmp_path / "out", "image-classification")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_the_table_of_architectures_is_what_optimum_says_of_itself() -> None:
    script = (
        "import json, optimum.exporters.openvino.model_configs\n"
        "from optimum.exporters.tasks import TasksManager as T\n"
        "known = T._LIBRARY_TO_SUPPORTED_MODEL_TYPES['transformers']\n"
        "print(json.dumps({k: list(v['openvino']) for k, v in known.items() if 'openvino' in v}))"
    )
    result = subprocess.run([environment(), "-c", script], capture_output=True, text=True, check=True)
    known = {name: set(tasks) for name, tasks in json.loads(result.stdout.splitlines()[-1]).items()}
    taken = set(optimum.TASKS.values())
    expected = {name: tasks & taken for name, tasks in known.items() if tasks & taken}
    assert {name: set(tasks) for name, tasks in optimum.architectures().items()} == expected


@pytest.mark.full
def test_the_environment_is_made_once_and_runs_apart_from_ours() -> None:
    python = environment()
    assert environment() == python
    script = "import optimum.intel, transformers; print(transformers.__file__)"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert str(python.parents[1]) in result.stdout
