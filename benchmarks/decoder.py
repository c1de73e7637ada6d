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
import shutil
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
from threading import Timer
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
from aicc.runtime.manifest import Variant

WORKERS = Path(__file__).parent / "workers"
RESULTS = Path(__file__).parent / "results"
MODEL = "smollm2-135m"
LLAMA_CPP_FORMATS = {4: ("Q4_0", "Q4_K_M"), 8: ("Q8_0",)}  # by --bits
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
        stored_bytes: All its weights.
        kv_bytes: Keys and values of one token; in float16 where the engine does not say.
        options: For its worker.
        modules: What the worker imports before any clock starts.
        products: Number format in which it multiplies prompts; where that is not known, it is held against the
            fastest of the machine.
    """

    name: str
    weights: str
    python: Path
    worker: str
    model: Path
    weight_bytes: int
    stored_bytes: int
    kv_bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    products: str | None = None


class WorkerError(Exception):
    """An engine failed; the message has the end of what it wrote to stderr."""


@contextmanager
def worker(engine: Engine, limit_s: float | None = None) -> Iterator[Any]:
    """Start an engine's worker; gives a function from request to answer (see workers/protocol.py).

    Args:
        engine: What it runs.
        limit_s: Seconds after which it is ended; None lets it take what it takes.
    """
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

        timer = Timer(limit_s, process.kill) if limit_s is not None else None
        if timer is not None:
            timer.start()
        try:
            yield ask
        finally:
            if timer is not None:
                timer.cancel()
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
        "peak_rss_bytes": [answers[-1]["memory"]["VmHWM"]],
        "engine": [run["engine"] for run in runs],
    }


def compare(
    engines: Sequence[Engine], threads: int, rounds: int, texts: Iterator[list[int]], decode_tokens: int
) -> dict[str, Any]:
    """All rounds of all engines, their prompts taken from ``texts``.

    Returns:
        Per engine its samples, with them the read bandwidth over as many bytes as its weights.
    """
    samples: dict[str, dict[str, list[Any]]] = {engine.name: defaultdict(list) for engine in engines}
    versions: dict[str, dict[str, str]] = {}
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
                "matrix_peak_fraction": computed / (peaks[engine.products] if engine.products else max(peaks.values())),
                "matrix_peak_of": engine.products or max(peaks, key=peaks.__getitem__),
                "samples": samples,
            }
        )
    return rows


def artifact_engines(artifacts: Sequence[str], python: Path) -> list[Engine]:
    """The artifacts, each given as ``NAME=PATH``."""
    engines = []
    for name, _, path in (text.partition("=") for text in artifacts):
        manifest = Artifact.open(Path(path)).manifest
        if manifest.llm is None:
            raise SystemExit(f"{path} is no language model; only those are compared.")
        modules = ("openvino",) if manifest.variants[0].family == "openvino" else ()
        engines.append(
            Engine(
                f"aicc {name}" if len(artifacts) > 1 else "aicc",
                manifest.quantization,
                python,
                "run_aicc.py",
                Path(path),
                manifest.llm.weight_bytes_per_token,
                manifest.memory.weight_bytes,
                manifest.memory.kv_bytes_per_token,
                modules=modules,
                products=_products(manifest.variants[0]),
            )
        )
    return engines


def _products(variant: Variant) -> str | None:
    """The number format in which a variant multiplies prompts (see the kernels of ``cpu:amx``), if it is known."""
    tiles = variant.target == "cpu:amx" and variant.options["activations"] in ("mixed", "int8")
    return "bfloat16" if tiles else None


def peer_engines(gguf: Path, bits: int) -> list[Engine]:
    """openvino-genai on both its attention back ends and from both its sources, and llama.cpp in two builds."""
    python = peers.environment()

    def of_gguf(name: str, worker: str, path: Path, **options: Any) -> Engine:
        sizes = peers.gguf_sizes(path)
        return Engine(name, sizes.formats, python, worker, path, sizes.read, sizes.stored, sizes.kv, options)

    exported = peers.openvino_export(gguf, bits)
    size, kv = (exported / "openvino_model.bin").stat().st_size, peers.gguf_sizes(gguf).kv
    weights = f"symmetric int4 group {peers.INT4_GROUP}, int8 embeddings (NNCF)" if bits == 4 else "int8 by row (NNCF)"
    formats = [(name, peers.quantised(gguf, name)) for name in LLAMA_CPP_FORMATS[bits]]
    genai = "run_openvino_genai.py"
    engines = []
    for backend in ("PA", "SDPA"):
        name, options = f"openvino-genai {backend}, optimum int{bits}", {"backend": backend}
        engines.append(Engine(name, weights, python, genai, exported, size, size, kv, options))
    source, path = formats[0]  # it reads no Q5_0, of which Q4_K_M can be made
    engines += [of_gguf(f"openvino-genai {b}, GGUF {source}", genai, path, backend=b) for b in ("PA", "SDPA")]
    for build in ("wheel", "native"):
        engines += [of_gguf(f"llama.cpp {build}, {name}", f"run_llamacpp_{build}.py", path) for name, path in formats]
    return engines


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What every comparison asks: which engines, how often, on how many threads."""
    parser.add_argument(
        "--artifact", action="append", metavar="NAME=PATH", help="default: demo=build/smollm2-135m.aicc"
    )
    parser.add_argument("--model", default=MODEL, help="the GGUF the peers get, by name or path (default: %(default)s)")
    parser.add_argument("--bits", type=int, choices=LLAMA_CPP_FORMATS, default=4, help="of the peers' weights")
    parser.add_argument("--only", action="append", metavar="TEXT", help="engines whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.processor().usable_cores)


def chosen_engines(
    options: argparse.Namespace, context: int, python: Path = Path(sys.executable)
) -> tuple[list[Engine], Path]:
    """The engines asked for, each with room for ``context`` tokens, and the artifact whose tokenizer makes prompts.

    ``python`` is of the environment with aicc.
    """
    engines = artifact_engines(options.artifact or [f"demo={peers.ROOT / 'build/smollm2-135m.aicc'}"], python)
    artifact = engines[0].model
    only = options.only or [""]
    if any(not text.startswith("aicc") for text in only):  # else nothing has to be made for the peers
        engines += peer_engines(resolve(options.model).path, options.bits)
    for engine in engines:
        engine.options["context"] = context
    return [engine for engine in engines if any(text in engine.name for text in only)], artifact


def facts() -> dict[str, Any]:
    """The machine and the commit, as they are now."""
    processor = machine.processor()
    git = [shutil.which("git") or "true", "-C", str(peers.ROOT)]  # machines that only measure may have none
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
    add_engine_options(parser)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DATE-MACHINE[-int8].json")
    options = parser.parse_args(arguments)

    engines, artifact = chosen_engines(options, 4 * (options.prompt_tokens + options.decode_tokens), peers.installed())
    prompts = held_out_prompts(artifact, options.prompt_tokens)
    document = facts() | {"load_average": {"before": os.getloadavg()}}
    peaks = matrix_peaks(options.threads)
    measured = compare(engines, options.threads, options.rounds, prompts, options.decode_tokens)
    peaks = {dtype: max(peak, peaks[dtype]) for dtype, peak in matrix_peaks(options.threads).items()}
    sizes = peers.gguf_sizes(resolve(options.model).path)
    document["load_average"]["after"] = os.getloadavg()
    document |= {
        "model": Path(options.model).name,
        "threads": options.threads,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt_tokens,
        "decode_tokens": options.decode_tokens,
        "matrix_peaks_ops_per_s": peaks,
        "engines": report(engines, measured, peaks, 2 * (sizes.layers + sizes.head / options.prompt_tokens)),
    }
    output = options.output or RESULTS / f"{result_name(document, options.bits)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    output.with_suffix(".svg").write_text(plot.draw(document))
    print(output)


def result_name(document: dict[str, Any], bits: int) -> str:
    """Names a result's file by its day, the processor, and the bits of the weights when they are not 4."""
    processor: str = document["machine"]["processor"]
    words = "".join(c if c.isalnum() else " " for c in processor.lower()).split()
    return "-".join([document["date"][:10], *words, *([f"int{bits}"] if bits != 4 else [])])


if __name__ == "__main__":
    main()
