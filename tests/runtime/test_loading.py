"""Loading: what was asked for or a reason, never something else; and nothing heavy before it is needed."""

import os
import shutil
import subprocess
import sys

import pytest
from small_tensors import write_small

from aicc.runtime import Session, load
from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import IntegrityError, MismatchError, UsageError
from aicc.runtime.provider import Compatibility, Fit
from aicc.targets.null.provider import NullProvider

BOTH = ("null:host", "reference:cpu")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("loading") / "small.aicc", *BOTH).path


@pytest.mark.parametrize(
    ("device", "runs_on"),
    [
        (None, "null:host"),  # what it was first compiled for
        ("null:host", "null:host"),
        ("reference:cpu", "onnxruntime"),
        ("reference", "onnxruntime"),
        ("reference-cpu", "onnxruntime"),
        ("CPU", "onnxruntime"),
        ("cpu", "onnxruntime"),
        ("host", "null:host"),
    ],
)
def test_a_device_may_be_a_target_a_family_a_variant_or_what_the_provider_calls_it(artifact, device, runs_on):
    with load(artifact, device=device) as session:
        assert isinstance(session, Session)
        assert runs_on in session.device


@pytest.mark.parametrize("device", ["openvino:cpu", "GPU", "nonsense"])
def test_a_device_the_artifact_was_not_compiled_for_is_refused(artifact, device):
    with pytest.raises(MismatchError, match="null:host, reference:cpu") as caught:
        load(artifact, device=device)
    assert "aicc compile" in caught.value.remedy


@pytest.mark.parametrize("fit", [Fit.RECOMPILE, Fit.UNSUPPORTED])
def test_an_executable_that_cannot_be_used_here_is_refused_with_the_providers_reason(artifact, monkeypatch, fit):
    monkeypatch.setattr(NullProvider, "compatibility", lambda self, variant: Compatibility(fit, "the driver is gone."))
    with pytest.raises(MismatchError, match="the driver is gone") as caught:
        load(artifact)
    assert ("aicc compile" in caught.value.remedy) == (fit is Fit.RECOMPILE)


def test_what_is_not_quite_as_it_was_compiled_for_runs_and_says_so(artifact):
    with load(artifact) as session:  # the sample does not say which onnx it was made with
        assert session.compatibility.fit is Fit.USABLE
        assert "onnx" in session.compatibility.reason


def test_an_artifact_of_a_family_that_is_not_installed_is_refused(tmp_path):
    path = write_small(tmp_path / "small.aicc", "elsewhere:chip").path
    with pytest.raises(MismatchError, match="elsewhere:chip"):
        load(path)


@pytest.mark.parametrize(
    "changed",
    [
        "model.onnx",
        "report.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/tokenizer.json",
        "variants/openvino-cpu/decoder.json",
        "variants/openvino-cpu/model.xml",
    ],
)
def test_a_byte_changed_in_any_file_but_the_weights_is_found_before_anything_reads_it(demo_artifact, tmp_path, changed):
    path = tmp_path / "changed.aicc"
    shutil.copytree(demo_artifact.path, path, ignore=shutil.ignore_patterns("model.bin"))
    (path / WEIGHTS_PATH).touch()
    os.truncate(path / WEIGHTS_PATH, (demo_artifact.path / WEIGHTS_PATH).stat().st_size)  # zeros nobody reads
    data = bytearray((path / changed).read_bytes())
    data[len(data) // 2] ^= 1
    (path / changed).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{changed}.*sha256"):
        load(path)


def test_a_path_without_an_artifact_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not an artifact"):
        load(tmp_path / "missing.aicc")


@pytest.mark.parametrize(
    "option", [{"threads": 0}, {"kv_tokens": -1}, {"threads": "two"}, {"threads": 10**9}, {"kv_tokens": True}]
)
def test_options_that_make_no_sense_are_refused_by_name(artifact, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        load(artifact, **option)


def test_importing_the_runtime_imports_nothing_heavy():
    heavy = "onnx torch transformers optimum nncf openvino tokenizers minijinja starlette onnxruntime msgspec"
    code = f"import sys, aicc.runtime; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_everything_the_package_offers_can_be_imported_from_it():
    import aicc.runtime

    assert all(getattr(aicc.runtime, name).__name__ == name for name in aicc.runtime.__all__)
    assert not hasattr(aicc.runtime, "nonsense")
