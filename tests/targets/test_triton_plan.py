"""Decoders as launch plans: run whole in Triton's interpreter, and compiled for every architecture."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from miniatures import make_decoder
from numpy.typing import NDArray
from token_batch import token_batch
from tolerances import assert_within
from triton.backends import nvidia
from triton_plan import PlanInterpreter, compile_nothing

from aicc.compiler.importers import Source, import_model
from aicc.compiler.optimize import optimize
from aicc.compiler.pipeline import compile_model
from aicc.compiler.quantization.policy import quantize
from aicc.runtime.target import all_targets, find_target
from aicc.targets.triton.lowering import binaries, launches
from aicc.targets.triton.plan import PLAN_FILE, Plan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from torch_model import config_of, on_same_weights

TARGETS = [name for name, target in all_targets().items() if target.family == "triton"]
# A card of few processors, so that programs are few as well: the interpreter takes them one after the other.
SMALL = replace(binaries.CHIPS["sm90"], processors=4)


def _write(name: str, folder: Path, **changes: int) -> tuple[Source, NDArray[np.int64], list[NDArray[np.float32]]]:
    """A miniature, two sequences and what transformers computes for each."""
    model = make_decoder(name, **{"num_hidden_layers": 2} | changes)
    model.save_pretrained(folder)
    ids = torch.randint(3, 211, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    return Source(folder, "huggingface", "miniature"), ids.numpy(), list(expected)


def _plan(source: Source, quant: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PlanInterpreter:
    monkeypatch.setitem(binaries.CHIPS, "sm90", SMALL)
    specs, artifact = compile_nothing(monkeypatch), folder / "m.aicc"
    compile_model(source, "triton:sm90", artifact, quant=quant, measure=False)
    plan = msgspec.json.decode((artifact / "variants/triton-sm90" / PLAN_FILE).read_bytes(), type=Plan)
    return PlanInterpreter(plan, specs, (artifact / "weights/model.bin").read_bytes(), 12)


def _step(
    plan: PlanInterpreter, tokens: list[NDArray[np.int64]], past: list[int], pages: list[list[int]]
) -> NDArray[np.float32]:
    """Logits of every new token of several sequences in one step."""
    return plan.forward(token_batch(tokens, past, pages))


def _full(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.full)


@pytest.mark.parametrize(
    "name", ["gemma2", *map(_full, ("qwen3", "llama tied, with bias", "phi3", "olmo2", "granite"))]
)
def test_a_plan_computes_what_transformers_computes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids, expected = _write(name, tmp_path)
    plan = _plan(source, "fp16", tmp_path, monkeypatch)
    assert_within("half", _step(plan, [ids[0, :1]], [0], [[5]]), expected[0][:1])
    together = _step(plan, [ids[0, 1:4], ids[1, :2]], [1, 0], [[5], [7]])
    assert_within("half", together, np.concatenate([expected[0][1:4], expected[1][:2]]))
    assert_within("half", _step(plan, [ids[1, 2:3]], [2], [[7]]), expected[1][2:3])


@pytest.mark.full
def test_a_long_prompt_is_taken_by_tiles_and_its_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids, expected = _write("llama", tmp_path)
    plan = _plan(source, "fp16", tmp_path, monkeypatch)
    pages = [[4, 0, 9], [3]]
    found = _step(plan, [ids[0, :66], ids[1, :3]], [0, 0], pages)
    assert_within("half", found, np.concatenate([expected[0][:66], expected[1][:3]]))
    assert_within("half", _step(plan, [ids[0, 66:67]], [66], pages[:1]), expected[0][66:67])


@pytest.mark.parametrize("quant", ["fp8", *map(_full, ("int4", "int8", "bf16"))])
def test_weights_of_every_format_give_what_torch_gives_on_the_same_weights(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids, _ = _write("llama", tmp_path, hidden_size=96)
    imported, target = import_model(source, digest=False), find_target("triton:sm90")
    optimize(imported, target)
    quantize(imported, target, quant, None)  # type: ignore[arg-type]
    expected = on_same_weights(imported, config_of(source))(ids[0, :6])
    plan = _plan(source, quant, tmp_path, monkeypatch)
    assert_within("half", _step(plan, [ids[0, :5]], [0], [[3]]), expected[:5])
    assert_within("half", _step(plan, [ids[0, 5:6]], [5], [[3]]), expected[5:])


def _only(patch: pytest.MonkeyPatch, *tiers: int, most: int) -> None:
    """Plans have fewer tiers, so that less is compiled."""
    patch.setattr(launches, "TIERS", tiers)
    patch.setattr(launches, "MAX_TOKENS", most)


def _check_kernels(artifact: Path, target: str) -> None:
    """Every kernel has a binary and its resources, none that decodes spills, and weights of single rows are read by
    16 bytes at a time.
    """
    folder = artifact / "variants" / target.replace(":", "-")
    kernels = json.loads((artifact / "report.json").read_text())["kernels"][target]
    plan = json.loads((folder / PLAN_FILE).read_text())
    assert {path.name for path in folder.iterdir()} == {PLAN_FILE} | {kernel["file"] for kernel in plan["kernels"]}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".hsaco" if "gfx" in target else ".cubin"}
    decode = {launch["kernel"] for tier in (*plan["body"][:-1], *plan["head"]) for launch in tier["launches"]}
    decode |= {launch["kernel"] for launch in plan["choice"]}
    assert len(kernels) == len(plan["kernels"])
    for number, kernel in enumerate(kernels):
        assert kernel["registers"] > 0
        assert kernel["stack_bytes"] == 0 or number not in decode, f"{target}: {kernel} spills"
    for path in folder.glob("*-matvec.cubin"):
        assert set(_widths_of_weights(path)) == {"128"}, f"{target}: {path.name} reads weights in small pieces"


def _widths_of_weights(cubin: Path) -> list[str]:
    """Bits of each instruction of a binary that loads past the first cache, as only weights are (``.cg``)."""
    tool = Path(nvidia.__file__).with_name("bin") / "nvdisasm"
    code = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
    loads = re.findall(r"\bLDG\.E(?:\.(\d+))?[.A-Z0-9]*\.STRONG", code)
    return [width or "32" for width in loads]


@pytest.mark.parametrize("quant", ["int4", *map(_full, ("int8", "fp8", "bf16"))])
def test_all_architectures_compile_from_one_set_of_weights(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, 1, most=1)  # what decodes one sequence
    source, _, _ = _write("llama", tmp_path, num_hidden_layers=1, hidden_size=576, intermediate_size=1152)
    compile_model(source, ",".join(TARGETS), tmp_path / "m.aicc", quant=quant, measure=False)  # type: ignore[arg-type]
    for target in TARGETS:
        _check_kernels(tmp_path / "m.aicc", target)


@pytest.mark.full
def test_variants_have_one_set_of_weights_and_the_same_bytes_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, 1, most=1)
    source, _, _ = _write("llama", tmp_path, num_hidden_layers=1, hidden_size=96)
    many, one = tmp_path / "m.aicc", tmp_path / "one.aicc"
    compile_model(source, "triton:sm90,triton:gfx942", many, quant="int4", measure=False)
    compile_model(source, "triton:sm90", one, quant="int4", measure=False)
    sizes = [(path / "weights/model.bin").stat().st_size for path in (many, one)]
    assert sizes[0] == sizes[1], "variants share their weights"
    for path in (one / "variants/triton-sm90").iterdir():
        again = many / "variants/triton-sm90" / path.name
        assert path.read_bytes() == again.read_bytes(), "the same source gives the same bytes"


@pytest.mark.parametrize("target", [_full(name) for name in TARGETS])
def test_many_sequences_and_prompts_compile_and_nothing_that_decodes_spills(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, *launches.TIERS[1:], most=launches.MAX_TOKENS)
    source, _, _ = _write("llama", tmp_path, num_hidden_layers=1, hidden_size=96)
    compile_model(source, target, tmp_path / "m.aicc", quant="int4", measure=False)
    _check_kernels(tmp_path / "m.aicc", target)
