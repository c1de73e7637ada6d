"""Artifacts of the triton family on this machine's GPU, its limits and its peers: python benchmarks/gpu.py --help.

In ten minutes: whether numbers are right, then how fast. A model of a published shape is measured with random weights
(shaped.py), a real one with its own. What there is no time, memory or package for is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import which
from statistics import median
from threading import Timer
from typing import Any

import decoder
import gpu_rates
import make_model
import numpy as np
import peers
import shaped
import table
import torch_model
from tokenizers import Tokenizer

from aicc.compiler.evaluate import Divergence, read_text
from aicc.compiler.importers import import_model
from aicc.compiler.optimize import optimize
from aicc.compiler.pipeline import compile_model
from aicc.compiler.quantization.policy import quantize
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, Model, machine
from aicc.runtime.artifact import TOKENIZER_PATH
from aicc.runtime.errors import ResourceError, first_line
from aicc.runtime.options import EngineOptions
from aicc.runtime.provider import LoadOptions
from aicc.runtime.session import load_artifact
from aicc.runtime.target import all_targets, find_target
from aicc.targets.triton.driver import Driver, drivers, why_none
from aicc.targets.triton.executable import OpenPlan, TritonDecoder
from aicc.targets.triton.provider import takes

BUILD = peers.BUILD / "gpu"
QUANTS = ("bf16", "int8", "fp8", "int4")
ASKED = {"bf16": 0.8, "int8": 0.7, "fp8": 0.7, "int4": 0.6}  # of the copy rate, decoding one sequence
ASKED_PREFILL = 0.6  # of the bfloat16 rate
ASKED_TIMES = 3  # as many tokens of the real model as torch.compile decodes
MOST_KL, LEAST_TOP1 = 0.005, 0.98  # from torch in float32 on the same weights, where products are of half precision
GROUPS = {"int8": 32}  # also asked for where the source has fewer bits, which would be kept else
PROMPT, PAST, STEPS, TOGETHER = 2048, 128, 64, 64
TEXT = 160  # tokens whose numbers are compared
_RESERVE = 20  # seconds to end what takes too long, and to write
CONTEXT = 4096  # tokens that peers have room for
KV_TOKENS = 16_384


@dataclass
class Row:
    """A line of the table; what was not measured is None."""

    model: str
    engine: str
    weights: str
    kl_mean: float | None = None
    top1_agreement: float | None = None
    decode_tokens_per_s: float | None = None
    bandwidth_fraction: float | None = None
    together_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    matrix_peak_fraction: float | None = None
    note: str = ""


@dataclass
class Run:
    """What is being measured, with what, and how long it may take.

    Attributes:
        driver: Of the GPU.
        target: What is compiled for it.
        folder: Of what is compiled.
        python: Whose torch has the GPU, if any has.
        ends: When the time is over, by :func:`time.monotonic`.
        limits: Bytes and operations a second, by name.
        rows: What was found.
    """

    driver: Driver
    target: str
    folder: Path
    python: str
    ends: float
    limits: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def needs(self, seconds: float) -> None:
        """Begin nothing that there is no time for.

        Raises:
            TimeoutError: There is not so much left.
        """
        if self.left() < seconds:
            raise TimeoutError(f"there were no {seconds:.0f} seconds left")

    @contextmanager
    def row(self, model: str, engine: str, weights: str) -> Iterator[Row]:
        """Add a row, which says why where it cannot be measured."""
        row = Row(model, engine, weights)
        self.rows.append(row)
        print(f"{self.left():.0f} s left: {model}, {engine}, {weights}", file=sys.stderr)
        try:
            yield row
        except Exception as error:  # whatever it is, the other rows are still to be measured
            row.note = f"left out: {first_line(error)}"
            print(f"  {error}", file=sys.stderr)


def compile_real(model: str, target: str, quant: str, folder: Path) -> None:
    """An artifact of a real model at ``folder``, and beside it what torch computes with its weights."""
    group, chosen = GROUPS.get(quant), find_target(target)
    compile_model(model, target, folder, quant=quant, group_size=group, measure=False)  # type: ignore[arg-type]
    source = resolve(model)
    imported = import_model(source, digest=False)
    optimize(imported, chosen)
    described = quantize(imported, chosen, quant, group)  # type: ignore[arg-type]
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_PATH))
    ids = np.asarray(tokenizer.encode(read_text(None)[0]).ids[:TEXT], np.int64)
    expected = torch_model.on_same_weights(imported, torch_model.config_of(source))(ids)
    np.savez(reference_path(folder), ids=ids, expected=expected, described=described)


def reference_path(artifact: Path) -> Path:
    """Where :func:`compile_real` puts the numbers; it is there when all is."""
    return artifact.with_suffix(".npz")


def artifact_path(folder: Path, target: str, quant: str) -> Path:
    """Where :func:`compile_all` puts the real model."""
    return folder / f"{target.replace(':', '-')}-{quant}.aicc"


def shape_path(folder: Path, target: str, shape: str, quant: str) -> Path:
    """Where :func:`compile_all` puts a shape."""
    return folder / f"{target.replace(':', '-')}-{shape}-{quant}"


def compile_all(
    model: str, shape: str, target: str, quants: Sequence[str], folder: Path, workers: int
) -> tuple[ProcessPoolExecutor, dict[Path, Future[None]]]:
    """Begin to compile what is not there yet, in processes for the caller to end; the result of each, by its path."""
    outline = folder / shape
    todo: dict[Path, Callable[[], None]] = {}
    for quant in quants:
        path = shape_path(folder, target, shape, quant)
        if not (path / shaped.SHAPED_FILE).exists():
            todo[path] = partial(shaped.compile_shape, outline, target, quant, path)  # type: ignore[arg-type]
        path = artifact_path(folder, target, quant)
        if not reference_path(path).exists():
            todo[path] = partial(compile_real, model, target, quant, path)
    if todo:
        shaped.write_outline(shape, outline)
        torch_model.config_of(resolve(model)).save_pretrained(folder / "real")
    pool = ProcessPoolExecutor(max(1, workers), multiprocessing.get_context("spawn"))
    return pool, {path: pool.submit(job) for path, job in todo.items()}


def find_gpu() -> tuple[Driver, str]:
    """The GPU and the target of the triton family that it runs.

    Raises:
        SystemExit: There is none; says why.
    """
    if not drivers():
        reason = why_none() or "there is no driver of NVIDIA's or AMD's on this machine."
        raise SystemExit(
            f"No GPU can be measured: {reason} To compile only, give --compile-for triton:sm90 or another."
        )
    driver = drivers()[0]
    targets = [
        t.variant for t in all_targets().values() if t.family == "triton" and takes(driver.architecture, t.variant)
    ]
    if not targets:
        raise SystemExit(f"No GPU can be measured: there is no target for {driver.architecture} ({driver.name}).")
    return driver, f"triton:{max(targets)}"


def measure_real(run: Run, model: str, made: dict[Path, Future[None]], quants: Sequence[str]) -> None:
    """Numbers beside torch's on the same weights, and how fast tokens are decoded."""
    for quant in quants:
        with run.row(model, "aicc", quant) as row:
            run.needs(20)
            path = artifact_path(run.folder, run.target, quant)
            _wait(run, made.get(path))
            reference = np.load(reference_path(path))
            ids, row.weights = reference["ids"], f"{quant}: {reference['described']}"
            options, engine = LoadOptions(kv_tokens=1024), EngineOptions(prefix_cache=False)
            with load_artifact(Artifact.open(path), options, engine=engine) as loaded:
                assert isinstance(loaded, Model)
                quality = _worse(loaded, ids, reference["expected"])
                row.kl_mean, row.top1_agreement = quality
                row.decode_tokens_per_s = gpu_rates.streamed(loaded, ids[:PAST].tolist(), STEPS)
            if not (quality[0] <= MOST_KL and quality[1] >= LEAST_TOP1):
                row.note = f"WRONG: KL may be {MOST_KL} and top-1 has to be {LEAST_TOP1:.0%}"


def _worse(model: Model, ids: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """KL and top-1 agreement of a text read as a prompt, or token by token, whichever is worse."""
    found = []
    for generated in (False, True):
        divergence = Divergence()
        divergence.add(gpu_rates.text_logits(model, ids, one_by_one=generated), expected, ids)
        quality = divergence.quality("")
        found.append((quality.kl_mean, quality.top1_agreement))
    return max(kl for kl, _ in found), min(top1 for _, top1 in found)


def measure_shape(run: Run, shape: str, made: dict[Path, Future[None]], quants: Sequence[str]) -> None:
    """How fast a shape is with weights of each kind, as parts of what the GPU can."""
    for quant in quants:
        with run.row(shape, "aicc", quant) as row:
            run.needs(20)
            folder = shape_path(run.folder, run.target, shape, quant)
            _wait(run, made.get(folder))
            facts, plan, weights = shaped.read_shaped(folder)
            row.weights = f"{quant}: {facts.quantization}, random"
            pages = KV_TOKENS // plan.page_tokens

            def opened(plan: Any = plan, weights: Any = weights, pages: int = pages, folder: Path = folder) -> OpenPlan:
                return OpenPlan(run.driver, plan, lambda name: (folder / name).read_bytes(), weights, pages)

            executable = TritonDecoder(opened, run.driver, plan, pages, {})
            try:
                rates = gpu_rates.rates(executable, plan.vocab, PROMPT, PAST, STEPS, TOGETHER)
            finally:
                executable.close()
            row.decode_tokens_per_s, row.together_tokens_per_s = rates.decode, rates.together
            row.prefill_tokens_per_s = rates.prefill
            row.bandwidth_fraction = rates.decode * facts.weight_bytes_per_token / run.limits["copy_bytes_per_s"]
            row.note = f"asked: {ASKED[quant]:.0%} of copying"
            if peak := run.limits.get("bf16_operations_per_s"):
                operations = 2 * (facts.layers + facts.head / rates.prompt)
                row.matrix_peak_fraction = rates.prefill * operations / peak
                row.note += f", {ASKED_PREFILL:.0%} of the bfloat16 rate"


def _wait(run: Run, made: Future[None] | None) -> None:
    if made is not None:
        made.result(timeout=max(1, run.left()))


def measure_torch(run: Run, name: str, folder: Path, *, compiled: bool, together: bool) -> None:
    """Torch on this GPU, if it is a torch that can."""
    engine = "torch.compile, CUDA graphs" if compiled else "torch eager"
    with run.row(name, engine, "bf16, random") as row:
        run.needs(60)
        if not gpu_rates.torch_has_gpu(run.python):
            raise ImportError(f"the torch of {run.python} has no GPU")
        options = {"context": CONTEXT, "device": "cuda", "compiled": compiled}
        _measure_peer(run, row, "run_torch.py", folder, options, (), together)


def measure_serving_engines(run: Run, shape: str, folder: Path) -> None:
    """Those that this Python has."""
    for name in ("vllm", "sglang"):
        with run.row(shape, name, "bf16, random") as row:
            run.needs(90)
            if not gpu_rates.runs(run.python, f"import {name}"):
                raise ImportError("it is not installed")
            _measure_peer(run, row, "run_serving_engine.py", folder, {"context": CONTEXT}, (name,), together=True)


def measure_llama_bench(run: Run, model: str) -> None:
    """llama.cpp's own benchmark on the published file, if it is installed."""
    with run.row(model, "llama.cpp (llama-bench)", "as published") as row:
        run.needs(30)
        program = which("llama-bench")
        if program is None:
            raise ImportError("llama-bench is not installed")
        source = resolve(model)
        if source.kind != "gguf":
            raise ImportError(f"{model} is no GGUF file")
        rates = gpu_rates.llama_bench(program, source.path, PAST, STEPS, run.left())
        row.prefill_tokens_per_s, row.decode_tokens_per_s = rates


def _measure_peer(
    run: Run, row: Row, worker: str, folder: Path, options: dict[str, Any], modules: tuple[str, ...], together: bool
) -> None:
    engine = decoder.Engine(row.engine, row.weights, Path(run.python), worker, folder, 0, 0, 0, options, modules)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    prompts = gpu_rates.random_prompts(vocab)
    with decoder.worker(engine, limit_s=run.left()) as ask:
        ask({"load": {"model": str(folder), "threads": machine.processor().usable_cores, "options": options}})
        answers = [ask({"generate": {"ids": prompts(PAST), "tokens": STEPS}}) for _ in range(3)][1:]
        row.decode_tokens_per_s = median((a["count"] - 1) / (a["last_s"] - a["first_s"]) for a in answers)
        answers = [ask({"generate": {"ids": prompts(PROMPT), "tokens": 2}}) for _ in range(3)][1:]
        row.prefill_tokens_per_s = median(PROMPT / a["first_s"] for a in answers)
        if together:
            request = {"prompts": [prompts(PAST) for _ in range(TOGETHER)], "tokens": STEPS}
            row.together_tokens_per_s = ask({"together": request})["tokens_per_s"]


def compare_real(rows: Sequence[Row], model: str) -> None:
    """Note how many times torch.compile's tokens of the real model each artifact decodes."""
    peer = next(
        (r.decode_tokens_per_s for r in rows if r.model == model and r.engine.startswith("torch.compile")), None
    )
    for row in rows:
        if peer and row.model == model and row.engine == "aicc" and row.decode_tokens_per_s:
            said = f"{row.decode_tokens_per_s / peer:.1f}x torch.compile (asked: {ASKED_TIMES}x)"
            row.note = f"{row.note}; {said}" if row.note else said


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("KL", "kl_mean", "{:.5f}".format),
    ("top-1", "top1_agreement", "{:.1%}".format),
    ("decode, tokens/s", "decode_tokens_per_s", "{:,.0f}".format),
    ("of copying", "bandwidth_fraction", "{:.0%}".format),
    (f"{TOGETHER} at once, tokens/s", "together_tokens_per_s", "{:,.0f}".format),
    (f"prefill of {PROMPT:,}, tokens/s", "prefill_tokens_per_s", "{:,.0f}".format),
    ("of bf16 rate", "matrix_peak_fraction", "{:.0%}".format),
)


def report(document: dict[str, Any]) -> str:
    """The table of a result, and what it was measured on."""
    lines = [["model", "engine", "weights", *(heading for heading, _, _ in _COLUMNS), "note"]]
    for row in document["rows"]:
        cells = ["–" if row[key] is None else write(row[key]) for _, key, write in _COLUMNS]
        lines.append([row["model"], row["engine"], row["weights"], *cells, row["note"]])
    limits = document["limits"]
    said = f"copying {limits.get('copy_bytes_per_s', 0) / 1e9:,.0f} GB/s (read and written)"
    if peak := limits.get("bf16_operations_per_s"):
        said += f", bfloat16 products {peak / 1e12:,.0f} TFLOP/s"
    where = f"{document['gpu']}, {document['target']}, {document['date'][:10]}, {document['seconds']:.0f} s"
    return f"{table.markdown(lines, texts=3)}\n{where}: {said}, both measured in this run.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, measure, print the table and leave one JSON file."""
    parser = argparse.ArgumentParser(description="Artifacts of the triton family on this machine's GPU, and its peers.")
    parser.add_argument("--model", default=decoder.MODEL, help="a real decoder (default: %(default)s)")
    parser.add_argument("--shape", choices=make_model.SHAPES, default="llama-3-8b", help="(default: %(default)s)")
    parser.add_argument("--quant", action="append", choices=QUANTS, help="of weights; default: all")
    parser.add_argument("--minutes", type=float, default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=BUILD, help="what is compiled is kept there, and taken from there"
    )
    parser.add_argument("--compile-for", metavar="TARGET", help="only compile; needs no GPU")
    parser.add_argument("--only-aicc", action="store_true", help="no peers")
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PYTHON",
        help="a Python whose torch has the GPU, for peers and the rate of bfloat16 products (default: this one)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu/DATE-GPU.json")
    options = parser.parse_args(arguments)
    quants, workers = options.quant or QUANTS, machine.processor().usable_cores
    if options.compile_for:
        pool, made = compile_all(options.model, options.shape, options.compile_for, quants, options.folder, workers)
        with pool:
            for path, future in made.items():
                future.result()
                print(path)
        (options.folder / options.shape / "model.safetensors").unlink(missing_ok=True)  # holes, which copies would fill
        return
    started = time.monotonic()
    driver, target = find_gpu()
    run = Run(driver, target, options.folder, options.peer_python, started + 60 * options.minutes - _RESERVE)

    def give_up() -> None:
        """Where even a step of the GPU does not end."""
        write(run, options, started)
        print("The time was over before a row was measured.", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    timer = Timer(60 * options.minutes - _RESERVE / 2, give_up)
    timer.daemon = True
    timer.start()
    try:
        measure(run, options, quants, workers)
    finally:
        timer.cancel()
        write(run, options, started)
    if any(row.note.startswith("WRONG") for row in run.rows):
        raise SystemExit("Numbers differ from torch's on the same weights: the figures above are of a wrong decoder.")


def measure(run: Run, options: argparse.Namespace, quants: Sequence[str], workers: int) -> None:
    """All rows: what aicc does, and then its peers."""
    _, made = compile_all(options.model, options.shape, run.target, quants, options.folder, workers)
    run.limits["copy_bytes_per_s"] = gpu_rates.copy_rate(run.driver)
    try:
        if gpu_rates.torch_has_gpu(run.python):
            run.limits["bf16_operations_per_s"] = gpu_rates.matrix_rate(run.python)
    except ResourceError as error:
        print(error, file=sys.stderr)
    measure_real(run, options.model, made, quants)
    measure_shape(run, options.shape, made, quants)
    if not options.only_aicc:
        outline, real = options.folder / options.shape, options.folder / "real"
        measure_torch(run, options.model, real, compiled=True, together=False)
        measure_torch(run, options.shape, outline, compiled=False, together=True)
        measure_torch(run, options.shape, outline, compiled=True, together=True)
        measure_llama_bench(run, options.model)
        measure_serving_engines(run, options.shape, outline)


def write(run: Run, options: argparse.Namespace, started: float) -> None:
    """Print the table and leave the file."""
    compare_real(run.rows, options.model)
    document = decoder.facts() | {
        "gpu": run.driver.name,
        "target": run.target,
        "seconds": time.monotonic() - started,
        "limits": run.limits,
        "rows": [vars(row) for row in run.rows],
    }
    name = "-".join("".join(c if c.isalnum() else " " for c in run.driver.name.lower()).split())
    output = options.output or decoder.RESULTS / "gpu" / f"{document['date'][:10]}-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(report(document))
    print(output, flush=True)


if __name__ == "__main__":
    main()
