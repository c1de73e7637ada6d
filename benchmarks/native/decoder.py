"""How near the native kernels come to the machine: decode and prefill at SmolLM2-135M's shapes.

Weights are random 4-bit values with minima and a tied 8-bit vocabulary, so this measures the kernels without any
model. Variants and the machine's limits are measured in turns and printed as medians, since other work on the machine
makes single figures worthless: look at the fractions.

    python benchmarks/native/decoder.py --isa avx512-vnni --threads 2
"""

from __future__ import annotations

import argparse
import sys
import time
from ctypes import c_int32, c_size_t
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import native_build  # noqa: E402
import native_model  # noqa: E402

SHAPE = native_model.SMOLLM2_135M
LIMITS = Path(__file__).parent / "limits.c"


def multiplications(shape: native_model.Shape) -> int:
    """Weights that every token is multiplied with, but for the vocabulary, which only the last of a prompt meets."""
    attention = shape.hidden * shape.head * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.ffn)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", nargs="+", default=["avx512-vnni"], choices=native_build.HERE_ONLY)
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    variants = [(isa, threads) for isa in options.isa for threads in options.threads]
    models = {v: native_model.example(native_build.BUILD, v[0], SHAPE, v[1]) for v in variants}
    limits = {isa: native_model.library_of_limits(native_build.build(LIMITS, isa)) for isa in options.isa}
    size = next(iter(models.values())).description.weights_bytes
    weights = native_model.mapped(native_build.BUILD / f"weights-{size}.bin")
    rows: dict[tuple[str, int], list[list[float]]] = {v: [] for v in variants}
    for _ in range(options.rounds):
        for variant, model in models.items():
            isa, threads = variant
            rows[variant].append(measure(model, limits[isa], weights, threads, options.prompt, options.tokens))
    print(f"weights {size / 1e6:.1f} MB; prompt {options.prompt}; medians (best) of {options.rounds} rounds in turns")
    for (isa, threads), values in rows.items():
        middle, best = np.median(values, 0), np.max(values, 0)
        read, peak, prefill, decode = middle
        operations = 2 * multiplications(SHAPE)
        shares = np.array(values)
        of_peak = np.median(shares[:, 2] * operations / shares[:, 1])
        of_read = np.median(shares[:, 3] * size / shares[:, 0])
        print(
            f"{isa:12s} {threads} threads: read {read / 1e9:5.1f} ({best[0] / 1e9:5.1f}) GB/s, "
            f"int8 {peak / 1e12:5.3f} ({best[1] / 1e12:5.3f}) TOPS | "
            f"prefill {prefill:6.0f} ({best[2]:6.0f}) tok/s = {of_peak:4.0%} "
            f"of int8 | decode {decode:5.1f} ({best[3]:5.1f}) tok/s = {of_read:4.0%} of read"
        )


def measure(model, limits, weights, threads: int, prompt: int, tokens: int) -> list[float]:
    """Bytes read a second, int8 operations a second, prompt tokens a second, decoded tokens a second."""
    read = max(
        limits.read_rate(native_model.address(weights), c_size_t(len(weights)), c_int32(threads)) for _ in range(3)
    )
    peak = limits.int8_rate(c_int32(threads))
    model.reset()
    start = time.perf_counter()
    model.add(np.arange(prompt) % 1000)
    prefill = prompt / (time.perf_counter() - start)
    start = time.perf_counter()
    for token in range(tokens):
        model.add(np.array([token]))
    return [read, peak, prefill, tokens / (time.perf_counter() - start)]


if __name__ == "__main__":
    main()
