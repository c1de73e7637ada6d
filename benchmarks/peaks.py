"""The matrix peak of this machine by dtype: what prefill could reach if it only multiplied.

float32 by numpy's BLAS and by OpenVINO, bfloat16 and int8 by OpenVINO (oneDNN underneath), bfloat16 also by a loop of
AMX's tile products that loads nothing; the best of each counts. Large square matrices, so that neither memory nor
start-up is in the way.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
import openvino
from openvino import Type, opset13

from aicc.runtime.limits import matmul_peak

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import native_build  # noqa: E402

SIZE = 1536
LAYERS = 4
ROUNDS = 8


def matrix_peaks(threads: int) -> dict[str, float]:
    """Operations a second (a multiplication and an addition are two) by dtype."""
    peaks = {"float32": max(matmul_peak(threads), _chain(threads, "f32", quantised=False))}
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in capabilities:
        peaks["bfloat16"] = max(_chain(threads, "bf16", quantised=False), _tiles(threads))
    if "INT8" in capabilities:
        peaks["int8"] = _chain(threads, "f32", quantised=True)
    return peaks


def _tiles(threads: int) -> float:
    """Best rate of AMX's tile products in bfloat16; 0 on a processor without."""
    if native_build.ISAS["amx"].missing():
        return 0.0
    limits = ctypes.CDLL(str(native_build.build(ROOT / "benchmarks" / "native" / "limits.c", "amx")))
    limits.bfloat16_tile_rate.restype = ctypes.c_double
    return max(limits.bfloat16_tile_rate(threads) for _ in range(ROUNDS))


def _chain(threads: int, precision: str, quantised: bool) -> float:
    """Best rate of a chain of matrix products in one precision."""
    random = np.random.default_rng(0)
    source = opset13.parameter([SIZE, SIZE], Type.f32)
    x = source
    for _ in range(LAYERS):
        if quantised:
            low, high = (opset13.constant(np.float32(v)) for v in (0, 2.55))
            x = opset13.fake_quantize(x, low, high, low, high, 256)
            integers = opset13.constant(random.integers(-127, 128, (SIZE, SIZE), np.int8))
            scales = opset13.constant(np.full((SIZE, 1), 1 / 127, np.float32))
            weights = opset13.multiply(opset13.convert(integers, Type.f32), scales)
        else:
            weights = opset13.constant(random.uniform(-1, 1, (SIZE, SIZE)).astype(np.float32) / SIZE)
        x = opset13.matmul(x, weights, False, True)
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(openvino.Model([x], [source]), "CPU", properties).create_infer_request()
    value = random.uniform(0, 1, (SIZE, SIZE)).astype(np.float32)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        request.infer([value])
        best = min(best, time.perf_counter() - start)
    return 2 * SIZE**3 * LAYERS / best
