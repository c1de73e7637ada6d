"""The measured limits of this machine: what a memory-bound and a compute-bound step could reach.

Decoding one token reads every weight once, so its ceiling is the read bandwidth over just as many
bytes; prefill multiplies matrices, so its ceiling is the matrix peak. Both are measured with numpy
alone, next to the run they judge, because they change with the machine's load and clocks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

# Reductions that numpy vectorises and runs outside the interpreter lock, with next to no arithmetic
# a byte. Which one comes closest to the memory's limit differs between processors, so the best counts.
_REDUCTIONS: tuple[Callable[[NDArray[np.int64]], object], ...] = (np.add.reduce, np.bitwise_or.reduce)
_MIN_SLICE = 1 << 18  # bytes; below, calling numpy takes longer than reading
_ROUND_SECONDS = 0.05  # long enough that starting the threads does not count

_MATMUL = """
import sys, time, numpy as np
size, rounds = int(sys.argv[1]), int(sys.argv[2])
a, b, out = (np.ones((size, size), np.float32) for _ in range(3))
best = float("inf")
for _ in range(rounds):
    start = time.perf_counter()
    np.matmul(a, b, out=out)
    best = min(best, time.perf_counter() - start)
print(2 * size**3 / best)
"""
# The libraries numpy may be built on, each reading its own variable when it is loaded.
_BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def read_bandwidth(footprint_bytes: int, threads: int, seconds: float = 0.6) -> float:
    """Bytes a second this machine reads, sweeping again and again over one footprint.

    Each thread owns an equal slice, as a matrix product splits its rows. A footprint that fits a
    cache is read at the cache's speed; that is the honest ceiling of a model of that size. Slices under
    256 KiB are measured as if they were that large.

    Args:
        footprint_bytes: Bytes read in one sweep, such as a model's weight bytes per token.
        threads: Threads that read at the same time.
        seconds: About how long to measure; the best round counts.

    Returns:
        Bytes per second.
    """
    words = max(footprint_bytes // threads, _MIN_SLICE) // 8
    # Ones, not zeros: untouched zero pages would all be one and the same page of memory.
    slices = [np.ones(words, np.int64) for _ in range(threads)]
    sweep_bytes = words * 8 * threads
    # From a pessimistic 10 GB/s, so that a round takes about its time.
    sweeps = max(1, round(_ROUND_SECONDS * 1e10 / sweep_bytes))
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        deadline = time.perf_counter() + seconds
        while best == 0.0 or time.perf_counter() < deadline:
            for reduction in _REDUCTIONS:
                elapsed = _sweep(pool, reduction, slices, sweeps)
                best = max(best, sweep_bytes * sweeps / elapsed)
    return best


def _sweep(
    pool: ThreadPoolExecutor,
    reduction: Callable[[NDArray[np.int64]], object],
    slices: list[NDArray[np.int64]],
    sweeps: int,
) -> float:
    """Seconds from the first thread's start to the last one's end; all start together."""
    barrier = threading.Barrier(len(slices))

    def work(part: NDArray[np.int64]) -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        for _ in range(sweeps):
            reduction(part)
        return start, time.perf_counter()

    spans = list(pool.map(work, slices))
    return max(end for _, end in spans) - min(start for start, _ in spans)


def matmul_peak(threads: int, size: int = 1536, rounds: int = 8) -> float:
    """Floating-point operations a second of numpy's float32 matrix product, the best of some rounds.

    Runs in a process of its own: the libraries under numpy take their number of threads only when
    they are loaded. Peaks of other dtypes need the chip's own libraries; ``benchmarks/`` has them.

    Args:
        threads: Threads of the matrix product.
        size: Rows and columns of the square matrices.
        rounds: Products timed.
    """
    environment = os.environ | {name: str(threads) for name in _BLAS_THREADS}
    command = [sys.executable, "-P", "-c", _MATMUL, str(size), str(rounds)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(answer.stdout)
