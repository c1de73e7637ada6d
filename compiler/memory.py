"""Keeps a compile from taking the memory of the whole machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aicc.runtime.machine import memory

_EXPANSION = 8  # a 4-bit weight as a float32
_REST_BYTES = 4 << 30  # for code, threads and intermediate tensors
_LEAST_BYTES = 1 << 30  # of addresses, below which libraries end the process because they start no thread


@contextmanager
def memory_bounded(weight_bytes: int) -> Iterator[None]:
    """Let this process take no more memory than there is, or than weights could need, while the block runs.

    A graph of a few bytes can make a target compute constants larger than any memory. The system
    would end this process for that, perhaps others before it; one that is bounded is told instead.
    Linux alone says what is needed for this; elsewhere nothing is bounded.

    Args:
        weight_bytes: Weights as they are stored.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    addressed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Mapped weights take addresses of their own, and no memory that could not be given back.
    there_is = max(memory().available, _LEAST_BYTES)
    limit = addressed + weight_bytes + min(there_is, _EXPANSION * weight_bytes + _REST_BYTES)
    if any(0 <= other < limit for other in before):  # unlimited is negative
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
