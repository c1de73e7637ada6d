"""Ten minutes of a loaded server, watching memory and pages: `python -m tests.server.soak [seconds]`.

Callers ask for all kinds of things and many of them hang up in the middle. At the end every page
must be free, and memory must not have grown since the first minute.
"""

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.server.live_server import NAME, ServerProcess, wait_idle

CALLERS = 12
WARM_SECONDS = 60
GROWTH_BYTES = 64 << 20  # what allocators may keep to themselves
WORDS = ["the", "a", "cat", "dog", "sat", "on", "under", "mat", "moon", "and", "then", "but", "river", "is", "was"]


async def call(http: httpx.AsyncClient, random: random.Random) -> None:
    """One request of a random kind; a third of the streams are left early."""
    body = {
        "model": NAME,
        "prompt": " ".join(random.choices(WORDS, k=random.choice([3, 30, 300]))),
        "max_tokens": random.choice([1, 20, 60]),
        "n": random.choice([1, 1, 2]),
        "stream": random.random() < 0.7,
    }
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code in (200, 429), answer.status_code
        leave_after = random.choice([1, 5, 10**6])
        lines = answer.aiter_lines()
        async for _ in lines:
            leave_after -= 1
            if not leave_after:
                return


async def load(url: str, seconds: float, seed: int) -> int:
    """Keep all callers busy; how many requests that made."""
    end, count = time.monotonic() + seconds, 0

    async def caller(number: int) -> None:
        nonlocal count
        choices = random.Random(seed * CALLERS + number)
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            while time.monotonic() < end:
                await call(http, choices)
                count += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return count


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600
    with ServerProcess(Path("build/smollm2-135m.aicc"), access_log=os.devnull) as server:
        server.wait_ready()
        process = psutil.Process(server.process.pid)
        warm = min(WARM_SECONDS, seconds / 3)
        asyncio.run(load(server.url, warm, seed=0))
        wait_idle(server.url)
        before = process.memory_info().rss
        count = asyncio.run(load(server.url, seconds - warm, seed=1))
        wait_idle(server.url)
        growth = process.memory_info().rss - before
        print(
            f"{count} requests in {seconds - warm:.0f} s; memory grew by {growth / 2**20:.1f} MiB; all pages are free"
        )
        assert growth < GROWTH_BYTES, "the server leaks memory"


if __name__ == "__main__":
    main()
