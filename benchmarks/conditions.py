"""What a comparison at rest does not show: python benchmarks/conditions.py --help.

- *start*: seconds from starting the process to the first token of a short prompt, interpreter, imports and
  loading included, files in the page cache.
- *memory*: the most that the process of *start* ever has resident (``VmHWM``) when, after that short prompt, another
  fills a KV cache with no room to spare; and what of it is neither weights nor KV: ``VmHWM`` less all bytes of
  the weights less those of the keys and values of that many tokens (for peers counted in float16).
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from decoder import RESULTS, Engine, add_engine_options, chosen_engines, facts, held_out_prompts, result_name, worker

_START_TOKENS = 32
_PROMPT_TOKENS, _DECODE_TOKENS = 128, 96
_MEMORY_TOKENS = _PROMPT_TOKENS + _DECODE_TOKENS
_TOGETHER = 8


def start(engine: Engine, threads: int, prompts: Iterator[list[int]]) -> dict[str, float]:
    """Seconds from starting the process to its first token, and the memory of that process after a longer prompt."""
    load = {"model": str(engine.model), "threads": threads, "options": engine.options | {"context": _MEMORY_TOKENS}}
    started = time.perf_counter()
    with worker(engine) as ask:
        ask({"load": load})
        ask({"generate": {"ids": next(prompts)[:_START_TOKENS], "tokens": 1}})
        seconds = time.perf_counter() - started
        memory = ask({"generate": {"ids": next(prompts), "tokens": _DECODE_TOKENS}})["memory"]
    over = memory["VmHWM"] - engine.stored_bytes - _MEMORY_TOKENS * engine.kv_bytes
    sizes = {f"memory_{name}_bytes": size for name, size in memory.items()}
    return {"start_s": seconds, **sizes, "memory_over_weights_and_kv_bytes": over}


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
    found = start(engine, threads, prompts)
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


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("start to first token, s", "start_s", lambda v: f"{v:.2f}"),
    ("peak memory, MB", "memory_VmHWM_bytes", lambda v: f"{v / 1e6:.0f}"),
    ("over weights and KV, MB", "memory_over_weights_and_kv_bytes", lambda v: f"{v / 1e6:.0f}"),
    ("decode, tokens/s", "decode_tokens_per_s", lambda v: f"{v:.0f}"),
    ("with a processor busy", "busy_fraction", lambda v: f"{v:.0%}"),
    (f"{_TOGETHER} together, tokens/s", "together_tokens_per_s", lambda v: f"{v:.0f}"),
    ("of one", "together_multiple", lambda v: f"{v:.1f}×"),
)


def table(samples: dict[str, dict[str, list[float]]]) -> str:
    """Medians as Markdown."""
    lines = [["engine", *(heading for heading, _, _ in _COLUMNS)], ["---", *["---:"] * len(_COLUMNS)]]
    for name, found in samples.items():
        lines.append([name, *(write(median(found[key])) if key in found else "" for _, key, write in _COLUMNS)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure; print a table and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_options(parser)
    options = parser.parse_args()
    engines, artifact = chosen_engines(options, context=_TOGETHER * 2 * _MEMORY_TOKENS)
    prompts = held_out_prompts(artifact, _PROMPT_TOKENS)
    samples: dict[str, dict[str, list[float]]] = {engine.name: defaultdict(list) for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            print(f"round {number + 1} of {options.rounds}: {engine.name}", file=sys.stderr)
            for key, value in measure(engine, options.threads, prompts).items():
                samples[engine.name][key].append(value)
    sizes = {"model": Path(options.model).name, "threads": options.threads, "rounds": options.rounds}
    document = facts() | sizes | {"samples": samples}
    output = RESULTS / "conditions" / f"{result_name(document, options.bits)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(samples))
    print(f"\nMedians of {options.rounds} rounds: {output}")


if __name__ == "__main__":
    main()
