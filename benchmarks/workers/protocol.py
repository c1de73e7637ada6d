"""The worker's side: one engine in one process, driven by one JSON object a line.

    → {"load": {"model": PATH, "threads": 2, "options": {…}}}
    ← {"seconds": 0.4, "versions": {…}, "memory": {…}}
    → {"generate": {"ids": [1, 2, …], "tokens": 65}}
    ← {"first_s": 0.1, "last_s": 0.9, "count": 65, "engine": {…}, "memory": {…}}
    → {"together": {"prompts": [[1, 2, …], …], "tokens": 65}}       (aicc only)
    ← {"tokens_per_s": 500.0, "memory": {…}}
    → {"users": {"prompts": [[1, 2, …], …], "users": 4, "seconds": 20, "tokens": 64}}       (aicc only)
    ← {"begin": 10.0, "end": 30.0, "exchanges": [[10.0, [10.1, 10.2, …]], …], "memory": {…}}

A failure is answered with ``{"error": "…"}``; the end of the input ends the worker. The engines' own
chatter is sent to stderr, so that nothing but answers is on stdout. This file imports nothing but
the standard library: it runs in whatever environment holds the engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Generated:
    """What a generation looked like from outside.

    Attributes:
        first: ``time.perf_counter()`` when the first new token was known.
        last: The same of the last one.
        count: New tokens.
        engine: The engine's own figures, kept beside ours to compare.
    """

    first: float
    last: float
    count: int
    engine: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What a worker wraps. The engine's modules are imported before the clock of ``load`` starts."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """Make the model ready to answer; returns versions by package."""
        ...

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """Decode greedily, past any end-of-sequence token, without reusing an earlier prompt's cache."""
        ...


def serve(engine: Engine) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(engine, json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    if "load" in request:
        versions = engine.load(**request["load"])
        answer = {"seconds": time.perf_counter() - start, "versions": versions}
    elif "together" in request:
        answer = {"tokens_per_s": engine.together(**request["together"])}
    elif "users" in request:
        answer = engine.users(**request["users"])
    else:
        done = engine.generate(**request["generate"])
        answer = {
            "first_s": done.first - start,
            "last_s": done.last - start,
            "count": done.count,
            "engine": done.engine,
        }
    return answer | {"memory": memory_bytes()}


def memory_bytes(process: int | str = "self") -> dict[str, int]:
    """What a process has resident, by kind, and the most it ever had (``VmHWM``), mapped files included."""
    with open(f"/proc/{process}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}
