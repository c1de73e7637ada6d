"""What a comparison at rest does not show: python benchmarks/conditions.py --help.

- *start*: seconds from starting the process to the first token of a short prompt, interpreter, imports and
  loading included, files in the page cache.
- *busy*: decode while another process keeps one processor for itself, as a fraction of decode without it.
- *together*: decode of eight sequences at once, all their tokens counted, as a multiple of one sequence's (aicc only).

Engines take turns, round after round, as in decoder.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from decoder import (
    MODEL,
    RESULTS,
    Engine,
    default_engines,
    facts,
    held_out_prompts,
    machine_name,
    parse_artifacts,
    worker,
)

from aicc.compiler.models import pull
from aicc.runtime import machine

_START_TOKENS = 32
_PROMPT_TOKENS, _DECODE_TOKENS = 128, 96
_TOGETHER = 8


def seconds_to_first_token(engine: Engine, threads: int, ids: list[int]) -> float:
    """From starting the process to its first token."""
    started = time.perf_counter()
    with worker(engine) as ask:
        ask({"load": {"model": str(engine.model), "threads": threads, "options": engine.options}})
        ask({"generate": {"ids": ids, "tokens": 1}})
        return time.perf_counter() - started


@contextmanager
def busy_processor() -> Iterator[None]:
    """Another process that computes on the last of this process's processors."""
    last = max(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, {{{last}}})\nprint(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def measure(engine: Engine, threads: int, prompts: Iterator[list[int]]) -> dict[str, float]:
    """One round of one engine."""
    found = {"start_s": seconds_to_first_token(engine, threads, next(prompts)[:_START_TOKENS])}
    with worker(engine) as ask:
        ask({"load": {"model": str(engine.model), "threads": threads, "options": engine.options}})

        def decode() -> float:
            run = ask({"generate": {"ids": next(prompts), "tokens": _DECODE_TOKENS + 1}})
            return _DECODE_TOKENS / (run["last_s"] - run["first_s"])

        decode()
        found["decode_tokens_per_s"] = decode()
        with busy_processor():
            found["busy_decode_tokens_per_s"] = decode()
        found["busy_fraction"] = found["busy_decode_tokens_per_s"] / found["decode_tokens_per_s"]
        if engine.worker == "run_aicc.py":
            many = [next(prompts) for _ in range(_TOGETHER)]
            found["together_tokens_per_s"] = ask({"together": {"prompts": many, "tokens": _DECODE_TOKENS}})[
                "tokens_per_s"
            ]
            found["together_multiple"] = found["together_tokens_per_s"] / decode()
    return found


_COLUMNS = (
    ("start to first token, s", "start_s", "{:.2f}"),
    ("decode, tokens/s", "decode_tokens_per_s", "{:.0f}"),
    ("with a processor busy", "busy_fraction", "{:.0%}"),
    (f"{_TOGETHER} together, tokens/s", "together_tokens_per_s", "{:.0f}"),
    ("of one", "together_multiple", "{:.1f}×"),
)


def table(samples: dict[str, dict[str, list[float]]]) -> str:
    """Medians as Markdown."""
    lines = [["engine", *(heading for heading, _, _ in _COLUMNS)], ["---", *["---:"] * len(_COLUMNS)]]
    for name, found in samples.items():
        lines.append([name, *(form.format(median(found[key])) if key in found else "" for _, key, form in _COLUMNS)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure; print a table and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", action="append", metavar="NAME=PATH")
    parser.add_argument("--only", action="append", metavar="TEXT", help="engines whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.processor().usable_cores)
    options = parser.parse_args()
    artifacts = parse_artifacts(options.artifact)
    context = _TOGETHER * 2 * (_PROMPT_TOKENS + _DECODE_TOKENS)
    engines = default_engines(artifacts, pull(MODEL), context)
    engines = [e for e in engines if any(text in e.name for text in options.only or [""])]
    prompts = held_out_prompts(next(iter(artifacts.values())), _PROMPT_TOKENS)
    samples: dict[str, dict[str, list[float]]] = {engine.name: defaultdict(list) for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            print(f"round {number + 1} of {options.rounds}: {engine.name}", file=sys.stderr)
            for key, value in measure(engine, options.threads, prompts).items():
                samples[engine.name][key].append(value)
    document = facts() | {"model": MODEL, "threads": options.threads, "rounds": options.rounds, "samples": samples}
    output = RESULTS / "conditions" / f"{document['date'][:10]}-{machine_name(document)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(samples))
    print(f"\nMedians of {options.rounds} rounds: {output}")


if __name__ == "__main__":
    main()
