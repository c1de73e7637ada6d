"""Measure an artifact and its peers side by side: python benchmarks/decoder.py --help.

Every engine runs in a process of its own, one after the other, round after round (A B C A B C …),
so that what changes on the machine meanwhile falls on all of them. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import peers
import plot
from peaks import matrix_peaks
from tokenizers import Tokenizer

from aicc.compiler.evaluate import read_text
from aicc.compiler.sources import resolve
from aicc.runtime import machine
from aicc.runtime.artifact import TOKENIZER_PATH, Artifact
from aicc.runtime.limits import read_bandwidth

WORKERS = Path(__file__).parent / "workers"
RESULTS = Path(__file__).parent / "results"
MODEL = "smollm2-135m"
METRICS = ("load_s", "first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes")


@dataclass
class Engine:
    """One row of the comparison.

    Attributes:
        name: As the tables and pictures show it.
        weights: What it multiplies with, in words.
        python: Interpreter of the environment that holds the engine.
        worker: File under ``workers/``.
        model: What it is given to load.
        weight_bytes: Weights it reads to decode one token.
        options: For its worker.
        modules: What the worker imports before any clock starts.
    """

    name: str
    weights: str
    python: Path
    worker: str
    model: Path
    weight_bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


class WorkerError(Exception):
    """An engine failed; the message has the end of what it wrote to stderr."""


@contextmanager
def worker(engine: Engine) -> Iterator[Any]:
    """Start an engine's worker; gives a function from request to answer (see workers/protocol.py)."""
    with tempfile.TemporaryFile("w+") as chatter:
        command = [str(engine.python), str(WORKERS / engine.worker), *engine.modules]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=chatter, text=True)
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                answer = {"error": f"the worker ended ({process.wait()})"}
            if "error" in answer:
                chatter.seek(0)
                raise WorkerError(f"{engine.name}: {answer['error']}\n{chatter.read()[-2000:]}")
            return answer

        try:
            yield ask
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(engine: Engine, threads: int, prompts: Sequence[list[int]], decode_tokens: int) -> dict[str, Any]:
    """One round of one engine: a fresh process, loading, a cold first prompt, then the timed ones."""
    with worker(engine) as ask:
        loaded = ask({"load": {"model": str(engine.model), "threads": threads, "options": engine.options}})
        answers = [ask({"generate": {"ids": ids, "tokens": decode_tokens + 1}}) for ids in prompts]
    if any(answer["count"] != decode_tokens + 1 for answer in answers):
        raise WorkerError(f"{engine.name} did not generate {decode_tokens + 1} tokens")
    first, *runs = answers
    return {
        "versions": loaded["versions"],
        "load_s": [loaded["seconds"]],
        "first_token_s": [loaded["seconds"] + first["first_s"]],
        "prefill_tokens_per_s": [len(prompts[0]) / run["first_s"] for run in runs],
        "decode_tokens_per_s": [decode_tokens / (run["last_s"] - run["first_s"]) for run in runs],
        "peak_rss_bytes": [answers[-1]["peak_rss_bytes"]],
        "engine": [run["engine"] for run in runs],
    }


def compare(
    engines: Sequence[Engine], threads: int, rounds: int, prompt_tokens: int, decode_tokens: int
) -> dict[str, Any]:
    """All rounds of all engines.

    Returns:
        Per engine its samples, with them the read bandwidth over as many bytes as its weights.
    """
    samples: dict[str, dict[str, list[Any]]] = {engine.name: defaultdict(list) for engine in engines}
    versions: dict[str, dict[str, str]] = {}
    texts = held_out_prompts(engines[0].model, prompt_tokens)
    for number in range(rounds):
        prompts = [next(texts) for _ in range(3)]  # the same for every engine of the round, never seen again
        for engine in engines:
            print(f"round {number + 1} of {rounds}: {engine.name}", file=sys.stderr)
            sample = measure(engine, threads, prompts, decode_tokens)
            versions[engine.name] = sample.pop("versions")
            for metric, values in sample.items():
                samples[engine.name][metric] += values
            bandwidth = read_bandwidth(engine.weight_bytes, threads)
            samples[engine.name]["read_bandwidth_bytes_per_s"].append(bandwidth)
            read = median(sample["decode_tokens_per_s"]) * engine.weight_bytes
            samples[engine.name]["bandwidth_fraction"].append(read / bandwidth)
    return {"samples": samples, "versions": versions}


def held_out_prompts(artifact: Path, tokens: int) -> Iterator[list[int]]:
    """Endless prompts from the held-out text, each starting at another token."""
    ids = Tokenizer.from_file(str(artifact / TOKENIZER_PATH)).encode(read_text(None)[0]).ids
    starts = list(range(len(ids)))
    random.Random(0).shuffle(starts)
    for start in starts:
        yield (ids[start:] + ids)[:tokens]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def report(engines: Sequence[Engine], measured: dict[str, Any], peaks: dict[str, float], flops: float) -> list[Any]:
    """Per engine: medians and spread, and fractions of the machine's limits."""
    rows = []
    best_peak = max(peaks.values())
    for engine in engines:
        samples = measured["samples"][engine.name]
        summary = {
            metric: {"median": median(v), "min": min(v), "max": max(v)}
            for metric, v in samples.items()
            if metric in METRICS
        }
        computed = summary["prefill_tokens_per_s"]["median"] * flops
        rows.append(
            {
                "name": engine.name,
                "weights": engine.weights,
                "weight_bytes_per_token": engine.weight_bytes,
                "versions": measured["versions"][engine.name],
                **summary,
                "read_bandwidth_bytes_per_s": median(samples["read_bandwidth_bytes_per_s"]),
                "bandwidth_fraction": median(samples["bandwidth_fraction"]),
                "matrix_peak_fraction": computed / best_peak,
                "samples": samples,
            }
        )
    return rows


def default_engines(artifacts: dict[str, Path], gguf: Path, context: int) -> list[Engine]:
    """The artifacts, then openvino-genai on both its attention back ends and both its inputs, then llama.cpp."""
    engines = []
    for name, path in artifacts.items():
        manifest = Artifact.open(path).manifest
        weight_bytes = manifest.llm.weight_bytes_per_token if manifest.llm else 0
        label = f"aicc {name}" if len(artifacts) > 1 else "aicc"
        python = Path(sys.executable)
        modules = ("openvino",) if manifest.variants[0].family == "openvino" else ()
        aicc = Engine(label, manifest.quantization, python, "run_aicc.py", path, weight_bytes, modules=modules)
        engines.append(aicc)
    python = peers.environment()
    exported = peers.openvino_export(gguf)
    exported_bytes = (exported / "openvino_model.bin").stat().st_size
    gguf_bytes = peers.gguf_sizes(gguf)[0]
    for model, source, weight_bytes, weights in (
        (exported, "optimum int4", exported_bytes, f"int4 group {peers.INT4_GROUP}, int8 embeddings (NNCF)"),
        (gguf, "GGUF", gguf_bytes, "the GGUF's, as its reader converts them"),
    ):
        for backend in ("PA", "SDPA"):
            name = f"openvino-genai {backend}, {source}"
            options = {"backend": backend}
            engines.append(Engine(name, weights, python, "run_openvino_genai.py", model, weight_bytes, options))
    engines.append(Engine("llama.cpp", "the GGUF's", python, "run_llamacpp.py", gguf, gguf_bytes))
    for engine in engines:
        engine.options["context"] = context
    return engines


def facts() -> dict[str, Any]:
    """The machine and the commit, as they are now."""
    processor = machine.processor()
    git = ["git", "-C", str(peers.ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + ("+changes" if changed else ""),
        "machine": {
            "processor": processor.model,
            "architecture": processor.architecture,
            "instruction_sets": processor.instruction_sets,
            "cores": processor.usable_cores,
            "memory_bytes": machine.memory().total,
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; write one JSON file and its picture."""
    parser = argparse.ArgumentParser(description="Measure an artifact and its peers side by side.")
    parser.add_argument(
        "--artifact", action="append", metavar="NAME=PATH", help="default: demo=build/smollm2-135m.aicc"
    )
    parser.add_argument("--model", default=MODEL, help="the GGUF the peers get, by name or path (default: %(default)s)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="engines whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=machine.processor().usable_cores)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DATE-MACHINE.json")
    options = parser.parse_args(arguments)

    artifacts = parse_artifacts(options.artifact)
    gguf = resolve(options.model).path
    context = 4 * (options.prompt_tokens + options.decode_tokens)
    engines = [
        e for e in default_engines(artifacts, gguf, context) if any(text in e.name for text in options.only or [""])
    ]
    document = facts() | {"load_average": {"before": os.getloadavg()}}
    peaks = matrix_peaks(options.threads)
    measured = compare(engines, options.threads, options.rounds, options.prompt_tokens, options.decode_tokens)
    peaks = {dtype: max(peak, peaks[dtype]) for dtype, peak in matrix_peaks(options.threads).items()}
    _, layers, head = peers.gguf_sizes(gguf)
    document["load_average"]["after"] = os.getloadavg()
    document |= {
        "model": Path(options.model).name,
        "threads": options.threads,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt_tokens,
        "decode_tokens": options.decode_tokens,
        "matrix_peaks_ops_per_s": peaks,
        "engines": report(engines, measured, peaks, 2 * (layers + head / options.prompt_tokens)),
    }
    output = options.output or RESULTS / f"{document['date'][:10]}-{machine_name(document)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    output.with_suffix(".svg").write_text(plot.draw(document))
    print(output)


def parse_artifacts(given: Sequence[str] | None) -> dict[str, Path]:
    """``NAME=PATH`` options; the demo's artifact if there are none."""
    texts = given or [f"demo={peers.ROOT / 'build/smollm2-135m.aicc'}"]
    return {name: Path(path) for name, _, path in (text.partition("=") for text in texts)}


def machine_name(document: dict[str, Any]) -> str:
    """The processor's name as a part of a file's."""
    processor: str = document["machine"]["processor"]
    return "-".join("".join(c if c.isalnum() else " " for c in processor.lower()).split())


if __name__ == "__main__":
    main()
