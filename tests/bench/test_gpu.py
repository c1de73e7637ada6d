"""The benchmark of GPUs: what it says without one, its table, its time, and a model that is nowhere."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gpu
import gpu_rates
import make_model
import ml_dtypes
import numpy as np
import pytest
import shaped
import torch_model
from safetensors import safe_open

from aicc.compiler.importers import Source, import_model
from aicc.compiler.quantization.policy import quantize
from aicc.runtime.provider import TokenBatch
from aicc.runtime.target import all_targets, find_target
from aicc.targets.triton import driver

SHAPE = {
    "vocab_size": 49_152,  # of the tokenizer that make_model gives
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(make_model.SHAPES, "tiny", ("llama", SHAPE))
    return "tiny"


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(driver, "_LIBRARIES", {"cuda": ("libnothing.so", driver._CUDA)})
    driver.forget()
    yield
    driver.forget()


@pytest.mark.usefixtures("no_driver")
def test_without_a_gpu_it_says_so_and_stops() -> None:
    with pytest.raises(SystemExit, match=r"No GPU can be measured: there is no driver .* --compile-for triton:sm90"):
        gpu.main([])


def test_the_outline_of_a_model_has_its_tensors_and_takes_no_room(tiny: str, tmp_path: Path) -> None:
    shaped.write_outline(tiny, tmp_path / tiny)
    file = tmp_path / tiny / "model.safetensors"
    assert file.stat().st_size > 2 * 2 * 49_152 * 64
    assert file.stat().st_blocks * 512 < 100_000
    with safe_open(file, "np") as tensors:
        assert tensors.get_slice("model.layers.0.mlp.down_proj.weight").get_shape() == [64, 96]
        norm = tensors.get_slice("model.norm.weight")[:]
    assert norm.astype(np.float32).tolist() == [1] * 64
    imported = import_model(Source(tmp_path / tiny, "huggingface", tiny), digest=False)
    assert imported.llm is not None
    assert imported.llm.vocab_size == 49_152


def test_any_slice_of_weights_that_are_nowhere_is_the_same_as_in_the_whole() -> None:
    random = np.random.default_rng(0)
    sizes = {"bf16": 5 << 20, "constants": 1000, "int4": 3 << 20, "int4 fp16": 12_345}
    streams, at = [], 0
    for kind, size in (*sizes.items(), ("constants", 77)):
        streams.append(shaped.Stream(kind, at, size))
        at += -(-size // 64) * 64
    patterns = {kind: shaped.KINDS[kind](random) for kind in sizes if kind != "constants"}
    constants = random.bytes(1077)
    weights = shaped.StreamedWeights(tuple(streams), constants, patterns)
    whole = bytes(weights[: len(weights)])
    for begin, end in ((0, 64), (5 << 20, (5 << 20) + 2000), (4_000_001, 7_000_003), (len(weights) - 9, len(weights))):
        assert bytes(weights[begin:end]) == whole[begin:end]
    assert whole[5 << 20 : (5 << 20) + 1000] == constants[:1000]
    assert whole[-77:] == constants[1000:]
    matrix = np.frombuffer(whole, ml_dtypes.bfloat16, 1 << 20).astype(np.float32)
    assert matrix.std() == pytest.approx(0.02, rel=0.01)


def test_weights_of_every_format_are_spread_as_those_of_a_new_model() -> None:
    random = np.random.default_rng(0)
    made = {kind: make(random) for kind, make in shaped.KINDS.items()}
    half = lambda kind: made[kind].view(np.float16).astype(np.float32)  # noqa: E731
    nibbles = (made["int4"] & 15).astype(np.float32)
    weights = {
        "int4": nibbles * half("int4 fp16") + half("int4 minima"),
        "int8": (made["int8"].astype(np.float32) - 128) * half("int8 fp16"),
        "fp8": made["fp8"].view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 256 * made["fp8 fp32"].view(np.float32),
    }
    for kind, values in weights.items():
        assert values.std() == pytest.approx(0.02, rel=0.05), kind
        assert abs(values.mean()) < 0.001, kind


def test_what_cannot_be_measured_is_left_out_with_its_reason_and_the_rest_goes_on() -> None:
    run = gpu.Run(None, "triton:sm90", Path(), sys.executable, time.monotonic() + 50)  # type: ignore[arg-type]
    with run.row("m", "one", "bf16"):
        run.needs(60)
    with run.row("m", "two", "bf16"):
        raise KeyError("foreseen by nobody")
    with run.row("m", "three", "bf16") as row:
        run.needs(10)
        row.decode_tokens_per_s = 5.0
    assert [row.note for row in run.rows] == [
        "left out: there were no 60 seconds left",
        "left out: 'foreseen by nobody'",
        "",
    ]


def test_the_table_shows_what_was_measured_beside_what_was_asked() -> None:
    aicc = gpu.Row("real", "aicc", "bf16", 0.0001, 0.995, 900.0)
    peer = gpu.Row("real", "torch.compile, CUDA graphs", "bf16", decode_tokens_per_s=300.0)
    gpu.compare_real([aicc, peer], "real")
    shape = gpu.Row("8b", "aicc", "int8", None, None, 100.0, 0.7123, 2000.0, 9000.0, 0.61, "asked: 70% of copying")
    document = {
        "gpu": "A card",
        "target": "triton:sm90",
        "date": "2026-11-29T10:00:00+00:00",
        "seconds": 400.4,
        "limits": {"copy_bytes_per_s": 4e12, "bf16_operations_per_s": 8e14},
        "rows": [vars(row) for row in (aicc, peer, shape)],
    }
    heading, rule, *rows, nothing, said = gpu.report(json.loads(json.dumps(document))).splitlines()
    assert {line.count("|") for line in (heading, rule, *rows)} == {12}
    assert rows[0] == (
        "| real | aicc | bf16 | 0.00010 | 99.5% | 900 | – | – | – | – | 3.0x torch.compile (asked: 3x) |"
    )
    assert rows[2] == "| 8b | aicc | int8 | – | – | 100 | 71% | 2,000 | 9,000 | 61% | asked: 70% of copying |"
    assert not nothing
    assert said == (
        "A card, triton:sm90, 2026-11-29, 400 s: copying 4,000 GB/s (read and written), bfloat16 products "
        "800 TFLOP/s, both measured in this run."
    )


def test_every_gpu_of_a_target_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        name = "a card"

    monkeypatch.setattr(gpu, "drivers", lambda: (Gpu,))
    variants = [target.variant for target in all_targets().values() if target.family == "triton"]
    for Gpu.architecture, expected in [*((v, v) for v in variants), ("sm86", "sm80")]:
        assert gpu.find_gpu()[1] == f"triton:{expected}"
    Gpu.architecture = "sm75"
    with pytest.raises(SystemExit, match="no target for sm75"):
        gpu.find_gpu()


@pytest.mark.full  # another process that imports torch and transformers
def test_torchs_rates_are_taken_of_a_model_of_a_config_alone(tiny: str, tmp_path: Path) -> None:
    """On the processor, and not compiled: what needs a GPU is left."""
    shaped.write_outline(tiny, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    options = {"context": 64, "device": "cpu", "compiled": False}
    engine = gpu.decoder.Engine("torch", "", Path(sys.executable), "run_torch.py", tmp_path, 0, 0, 0, options)
    with gpu.decoder.worker(engine, limit_s=100) as ask:
        ask({"load": {"model": str(tmp_path), "threads": 1, "options": options}})
        answer = ask({"generate": {"ids": list(range(9)), "tokens": 4}})
        rate = ask({"together": {"prompts": [[1, 2, 3], [4, 5, 6]], "tokens": 4}})["tokens_per_s"]
    assert answer["count"] == 4
    assert 0 < answer["first_s"] < answer["last_s"]
    assert rate > 0


def test_a_peer_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    engine = gpu.decoder.Engine("torch", "", Path(sys.executable), "run_torch.py", tmp_path, 0, 0, 0)
    with pytest.raises(gpu.decoder.WorkerError, match="the worker ended"), gpu.decoder.worker(engine, 0.01) as ask:
        ask({"load": {}})


def test_llama_bench_is_read(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    answer = json.dumps([{"n_prompt": 128, "n_gen": 0, "avg_ts": 700.5}, {"n_prompt": 0, "n_gen": 64, "avg_ts": 55.5}])
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    assert gpu_rates.llama_bench(str(program), tmp_path / "m.gguf", 128, 64, 20) == (700.5, 55.5)


@pytest.mark.full
def test_all_of_it_runs_on_a_fault_injector_whose_numbers_are_found_to_be_wrong(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits are zeros and times are none of a GPU's; that all is done and said is what this shows."""
    library = tmp_path / "libfaults.so"
    source = Path(__file__).parents[1] / "targets/gpu_faults.c"
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(driver, "_LIBRARIES", {"cuda": (str(library), driver._CUDA)})
    monkeypatch.setattr(gpu_rates, "_COPIED", 1 << 20)
    monkeypatch.setattr(gpu, "KV_TOKENS", 20_480)
    driver.forget()
    make_model.make(tiny, tmp_path / "model")
    output = tmp_path / "result.json"
    arguments = ["--model", str(tmp_path / "model"), "--shape", tiny, "--folder", str(tmp_path / "made")]
    with pytest.raises(SystemExit, match="figures above are of a wrong decoder"):
        gpu.main([*arguments, "--quant", "bf16", "--output", str(output)])
    driver.forget()
    rows = json.loads(output.read_text())["rows"]
    ours = [row for row in rows if row["engine"] == "aicc"]
    assert len(ours) == 2
    for row in ours[:1]:
        assert row["kl_mean"] > gpu.MOST_KL
        assert row["decode_tokens_per_s"] > 0
        assert row["note"].startswith("WRONG")
    for row in ours[1:]:
        assert min(row[key] for key in ("decode_tokens_per_s", "together_tokens_per_s", "prefill_tokens_per_s")) > 0
        assert row["note"].startswith("asked")
    peers = [row for row in rows if row["engine"] != "aicc"]
    assert all(row["note"].startswith("left out") for row in peers) or gpu_rates.torch_has_gpu(sys.executable)
    assert capsys.readouterr().out.count("\n|") == len(rows) + 1
    counts = (ctypes.c_int64.in_dll(ctypes.CDLL(str(library)), f"seen_{name}").value for name in ("bad", "allocated"))
    assert list(counts) == [0, 0]


def test_torch_with_the_weights_of_a_graph_is_the_model_they_are_of(tiny: str, tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model("llama", **(SHAPE | {"vocab_size": 300}))
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    source = Source(tmp_path, "huggingface", "m")
    ids = np.arange(3, 20)
    for quant in ("", "bf16"):
        imported = import_model(source, digest=False)
        with torch.no_grad():
            if quant:
                quantize(imported, find_target("triton:sm90"), "bf16", None)
                for parameter in model.parameters():
                    if parameter.ndim == 2 and parameter.numel() >= 4096:
                        parameter.copy_(parameter.bfloat16().float())
            expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        found = torch_model.on_same_weights(imported, torch_model.config_of(source))(ids)
        assert np.array_equal(found, expected)


def test_rates_are_of_steps_over_pages_that_no_two_sequences_share(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int, int]] = []

    class Decoder:
        page_size, max_batch_tokens = 16, 100

        def forward_best(self, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
            count = len(batch.past)
            new = np.diff(batch.starts)
            assert len(set(batch.pages.tolist())) == len(batch.pages)
            assert (np.diff(batch.page_starts) * 16 >= batch.past + new).all()
            assert batch.logit_rows.tolist() == (batch.starts[1:] - 1).tolist()
            steps.append((count, int(batch.past[0]), int(new[0])))
            clock[0] += 0.5 if new[0] > 1 else 0.125
            return np.zeros(count, np.int64), np.zeros(count, np.float32)

    clock = [0.0]
    monkeypatch.setattr(gpu_rates.time, "perf_counter", lambda: clock[0])
    found = gpu_rates.rates(Decoder(), 50, prompt=2048, past=20, steps=8, together=4)  # type: ignore[arg-type]
    assert found == gpu_rates.Rates(decode=8, together=32, prefill=200, prompt=100)
    assert steps[:5] == [(1, 0, 100)] * 4 + [(1, 0, 20)]
    assert steps[5:13] == [(1, 20 + step, 1) for step in range(8)]
    assert steps[-8:] == [(4, 20 + step, 1) for step in range(8)]
