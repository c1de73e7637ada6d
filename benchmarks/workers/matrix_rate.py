"""How long torch takes for a product of two square matrices in bfloat16."""

from __future__ import annotations

import sys
import time

import torch

_REPEATS = 10


def seconds(side: int, device: str) -> float:
    """Of one product, the best of several series."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = []
    for _ in range(_REPEATS):
        wait()
        started = time.perf_counter()
        for _ in range(_REPEATS):
            a @ b
        wait()
        found.append((time.perf_counter() - started) / _REPEATS)
    return min(found)


if __name__ == "__main__":
    print(seconds(int(sys.argv[1]), sys.argv[2]))
