"""What a comparison at rest does not show: python benchmarks/conditions.py --help.

- *start*: seconds from starting the process to the first token of a short prompt, interpreter, imports and
  loading included, files in the page cache.
- *memory*: the most that the process of *start* ever has resident (``VmHWM``) when, after that short prompt, another
  fills a KV cache with no room to spare; and what of it is neither weights nor KV: ``VmHWM`` less all bytes of
  the weights less those of the keys and values of that many tokens (for peers counted in float16).
- *busy*: decode while another process keeps one processor for itself, as a fraction of decode without it.
- *together*: decode of eight sequences at once, all their tokens counted, as a multiple of one sequence's (aicc only).

With ``--library`` the chat of ``examples/c`` is measured too, over a folder of ``aicc compile --emit lib``: what a
device without Python has. It answers a question, which with the model's chat template is a prompt of about as many
tokens, and only its *start* and *memory* are measured.

Engines take turns, round after round, as in decoder.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import peers
from decoder import RESULTS, Engine, add_engine_options, chosen_engines, facts, held_out_prompts, result_name, worker
from workers.protocol import memory_bytes

from aicc.compiler.sources import resolve

_START_TOKENS = 32
_PROMPT_TOKENS, _DECODE_TOKENS = 128, 96
_MEMORY_TOKENS = _PROMPT_TOKENS + _DECODE_TOKENS
_TOGETHER = 8
_PROMPT_SIGN = b"> "  # before each question
_QUESTION = "What is the capital of France?\n"
_PROGRAM = "aicc, in C"


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


def start_program(library: Path, kv_bytes: int, threads: int) -> dict[str, float]:
    """The same two figures of the C chat in a library's folder; ``kv_bytes`` are of one token."""
    chat = library / "chat"
    command = [str(chat), str(library), "-v", "-t", str(threads), "-n", str(_DECODE_TOKENS)]
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as figures,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=figures, bufsize=0) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_QUESTION.encode())
        output = process.stdout.read(len(_PROMPT_SIGN))
        output += process.stdout.read(1)
        seconds = time.perf_counter() - started
        while not output.endswith(b"\n" + _PROMPT_SIGN):  # the answer is over and it waits, with all it has in memory
            output += process.stdout.read(4096) or sys.exit(f"{chat} ended early.")
        memory = memory_bytes(process.pid)
        process.stdin.close()
        process.wait()
        figures.seek(0)
        tokens = sum(int(count) for count in re.findall(r"(\d+) tokens", figures.read()))
    over = memory["VmHWM"] - (library / "model.bin").stat().st_size - tokens * kv_bytes
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
    parser.add_argument(
        "--library", type=Path, metavar="FOLDER", help="of compile --emit lib, with the chat made in it"
    )
    options = parser.parse_args()
    engines, artifact = chosen_engines(options, _TOGETHER * 2 * _MEMORY_TOKENS, peers.installed())
    prompts = held_out_prompts(artifact, _PROMPT_TOKENS)
    samples: dict[str, dict[str, list[float]]] = {engine.name: defaultdict(list) for engine in engines}
    if options.library:
        samples[_PROGRAM], kv_bytes = defaultdict(list), peers.gguf_sizes(resolve(options.model).path).kv
    for number in range(options.rounds):
        for engine in engines:
            print(f"round {number + 1} of {options.rounds}: {engine.name}", file=sys.stderr)
            for key, value in measure(engine, options.threads, prompts).items():
                samples[engine.name][key].append(value)
        if options.library:
            program = start_program(options.library, kv_bytes, options.threads)
            for key, value in program.items():
                samples[_PROGRAM][key].append(value)
    sizes = {"model": Path(options.model).name, "threads": options.threads, "rounds": options.rounds}
    document = facts() | sizes | {"samples": samples}
    output = RESULTS / "conditions" / f"{result_name(document, options.bits)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(samples))
    print(f"\nMedians of {options.rounds} rounds: {output}")


if __name__ == "__main__":
    main()
