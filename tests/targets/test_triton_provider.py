"""The runtime half against a fault injector in the place of libcuda and libamdhip64: what it asks for, and what it
says of failures.

Nothing is computed here, so no kernel is compiled; numbers are proven in test_triton_plan.py.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from miniatures import make_decoder
from token_batch import token_batch
from triton_plan import compile_nothing

from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.runtime import Artifact
from aicc.runtime.artifact import Variant
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UsageError
from aicc.runtime.provider import OPTIMAL, Fit, LoadOptions, TokenBatch
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.triton import driver
from aicc.targets.triton.executable import TritonDecoder, check
from aicc.targets.triton.plan import PLAN_FILE, Plan
from aicc.targets.triton.provider import TritonProvider


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("triton")
    make_decoder("llama", num_hidden_layers=1).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        compile_nothing(patch)
        targets = "triton:sm90,triton:gfx942"
        compile_model(Source(folder, "huggingface", "miniature"), targets, folder / "m.aicc", quant="fp16")
    return Artifact.open(folder / "m.aicc")


@pytest.fixture(scope="module", params=["cuda", "hip"])
def injector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind of driver, and the library in its place."""
    path = tmp_path_factory.mktemp("injector") / "libfaults.so"
    source = Path(__file__).with_name("gpu_faults.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, source]
    subprocess.run([*command, *(["-DHIP"] if request.param == "hip" else [])], check=True)
    return request.param, path


@pytest.fixture
def faults(injector: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The injector as the only driver of this machine, as new."""
    kind, path = injector
    library = ctypes.CDLL(str(path))
    chosen = {"architecture": 90, "devices": 1, "init": 0, "graph": 0, "launch": 0}
    for name, value in chosen.items():
        ctypes.c_int32.in_dll(library, f"fault_{name}").value = value
    ctypes.c_int64.in_dll(library, "fault_memory").value = 1 << 40
    for name in ("launches", "graphs", "resets", "bad"):
        ctypes.c_int64.in_dll(library, f"seen_{name}").value = 0
    monkeypatch.setattr(driver, "_LIBRARIES", {kind: (str(path), driver._LIBRARIES[kind][1])})
    driver.forget()
    yield library
    driver.forget()
    assert _seen(library, "bad") == 0, "the driver was given something wrong"
    assert _seen(library, "allocated") == 0, "memory of the GPU was not given back"


def _fault(library: ctypes.CDLL, name: str, value: int) -> None:
    kind = ctypes.c_int64 if name == "memory" else ctypes.c_int32
    kind.in_dll(library, f"fault_{name}").value = value


def _seen(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int64.in_dll(library, f"seen_{name}").value


def _variant(artifact: Artifact) -> Variant:
    """What the GPU that there is would be given."""
    kind = next(iter(driver._LIBRARIES))
    return artifact.manifest.variants[kind == "hip"]


def _load(artifact: Artifact, variant: Variant | None = None) -> TritonDecoder:
    variant = variant or _variant(artifact)
    loaded = TritonProvider().load(artifact, variant, LoadOptions(kv_tokens=128))
    assert isinstance(loaded, TritonDecoder)
    return loaded


def _batch(tokens: int) -> TokenBatch:
    return token_batch([range(3, 3 + tokens)], [0], [range(-(-tokens // 32))], last_rows=True)


def test_a_decoded_token_is_one_submission_and_a_prompt_its_launches(
    artifact: Artifact, faults: ctypes.CDLL, injector: tuple[str, Path]
) -> None:
    assert TritonProvider().compatibility(_variant(artifact)) == OPTIMAL
    decoder = _load(artifact)
    assert decoder.device == f"GPU: Fault Injector ({'sm90' if injector[0] == 'cuda' else 'gfx942'})"
    assert decoder.forward(_batch(1)).shape == (1, 211)
    noted = _seen(faults, "launches")
    decoder.forward(_batch(1))
    assert (_seen(faults, "launches"), _seen(faults, "graphs")) == (noted, 2)
    assert decoder.forward(_batch(70)).shape == (1, 211)
    assert (_seen(faults, "launches") > noted, _seen(faults, "graphs")) == (True, 2)
    graphs = _seen(faults, "graphs")
    tokens, highest = decoder.forward_best(_batch(1))
    assert (tokens.tolist(), highest.tolist(), _seen(faults, "graphs")) == ([0], [0.0], graphs + 1)
    assert decoder.forward_best(_batch(70))[0].tolist() == [0]
    decoder.close()
    decoder.close()
    with pytest.raises(UsageError, match="closed"):
        decoder.forward(_batch(1))


@pytest.mark.parametrize(("what", "tokens"), [("graph", 1), ("launch", 70)])
def test_a_gpu_lost_in_a_step_is_said_so_and_the_next_step_opens_it_again(
    what: str, tokens: int, artifact: Artifact, faults: ctypes.CDLL
) -> None:
    decoder = _load(artifact)
    decoder.forward(_batch(tokens))
    _fault(faults, what, 700)
    with pytest.raises(ResourceError, match=r"Fault Injector failed \(\w+: injected \(700\)\)"):
        decoder.forward(_batch(tokens))
    assert _seen(faults, "resets") == 1
    assert decoder.forward(_batch(tokens)).shape == (1, 211)
    decoder.close()


def test_memory_that_runs_out_in_a_step_is_said_so_and_the_next_step_is_another(
    artifact: Artifact, faults: ctypes.CDLL
) -> None:
    decoder = _load(artifact)
    _fault(faults, "launch", 2)
    with pytest.raises(ResourceError, match="no memory left") as refused:
        decoder.forward(_batch(70))
    assert "--kv-tokens" in refused.value.remedy
    assert decoder.forward(_batch(70)).shape == (1, 211)
    decoder.close()


def test_a_gpu_that_does_not_come_back_fails_every_step_and_hangs_none(artifact: Artifact, faults: ctypes.CDLL) -> None:
    decoder = _load(artifact)
    _fault(faults, "memory", 0)
    _fault(faults, "graph", 719)
    for _ in range(3):
        with pytest.raises(ResourceError):
            decoder.forward(_batch(1))
    decoder.close()


def test_too_little_memory_is_said_so_and_all_of_it_given_back(artifact: Artifact, faults: ctypes.CDLL) -> None:
    _fault(faults, "memory", 100_000)
    with pytest.raises(ResourceError, match="no memory left") as refused:
        _load(artifact)
    assert "--kv-tokens" in refused.value.remedy


def test_an_artifact_for_another_architecture_is_not_loaded(
    artifact: Artifact, faults: ctypes.CDLL, injector: tuple[str, Path]
) -> None:
    _fault(faults, "architecture", 80)
    made_for, there = ("sm90", "sm80") if injector[0] == "cuda" else ("gfx942", "gfx1100")
    for variant in artifact.manifest.variants:
        found = TritonProvider().compatibility(variant)
        assert found.fit is Fit.RECOMPILE
        assert f"--target triton:{there}" in found.reason
        with pytest.raises(MismatchError, match=variant.requires["architecture"]):
            _load(artifact, variant)
    assert made_for in TritonProvider().compatibility(_variant(artifact)).reason


@pytest.mark.parametrize(("what", "value"), [("devices", 0), ("init", 100), ("init", 35)])
def test_no_gpu_or_an_old_driver_is_no_device(what: str, value: int, artifact: Artifact, faults: ctypes.CDLL) -> None:
    _fault(faults, what, value)
    found = TritonProvider().compatibility(_variant(artifact))
    assert found.fit is Fit.UNSUPPORTED
    assert TritonProvider().devices() == []
    assert ("too old" in found.reason) == (value == 35)


@pytest.mark.usefixtures("faults")
def test_a_driver_that_lacks_a_function_is_too_old() -> None:
    (found,) = driver.drivers()
    with pytest.raises(MismatchError, match="the driver of Fault Injector lacks cuTomorrow: it is too old") as refused:
        found.function("cuTomorrow")
    assert "newer driver" in refused.value.remedy


def test_a_plan_that_names_what_is_not_there_is_refused(artifact: Artifact) -> None:
    plan = msgspec.json.decode(artifact.file(f"variants/triton-sm90/{PLAN_FILE}").read_bytes(), type=Plan)
    check(plan, plan.weights_bytes, 4)
    first = plan.body[0].launches[0]
    argument = msgspec.structs.replace(first.arguments[0], offset=1 << 40)
    for change in ({"kernel": 99}, {"arguments": (argument,)}):
        launch = msgspec.structs.replace(first, **change)
        body = (msgspec.structs.replace(plan.body[0], launches=(launch,)), *plan.body[1:])
        with pytest.raises(IntegrityError, match="launch plan"):
            check(msgspec.structs.replace(plan, body=body), plan.weights_bytes, 4)
    with pytest.raises(IntegrityError, match="shorter"):
        check(plan, plan.weights_bytes - 1, 4)


def test_a_plan_whose_numbers_do_not_fit_together_is_refused(artifact: Artifact) -> None:
    plan = msgspec.json.decode(artifact.file(f"variants/triton-sm90/{PLAN_FILE}").read_bytes(), type=Plan)
    first, kernel = plan.body[0].launches[0], plan.kernels[0]
    small = [msgspec.structs.replace(buffer, bytes=Extent(15)) for buffer in plan.buffers]
    grown = msgspec.structs.replace(plan.buffers[-1], bytes=Extent(1, "moons"))
    wide = msgspec.structs.replace(first, grid=(Extent(1 << 31), ONE, ONE))
    for said, change in {
        "smaller than what is copied": {"buffers": (plan.buffers[0], *small[1:])},
        "tiers": {"decode": plan.body[-1].most + 1},
        "grows with a size": {"buffers": (*plan.buffers[:-1], grown)},
        "more than any GPU has": {"kernels": (msgspec.structs.replace(kernel, threads=1 << 33), *plan.kernels[1:])},
        "too many": {"body": (msgspec.structs.replace(plan.body[0], launches=(wide,)), *plan.body[1:])},
        "is smaller": {"vocab": 1 << 62},
    }.items():
        with pytest.raises(IntegrityError, match=said):
            check(msgspec.structs.replace(plan, **change), plan.weights_bytes, 4)
