"""Servers under load, side by side: python benchmarks/serve.py --help.

- *closed loop*: 1, 4, 16 and 64 users, each of whom asks again as soon as the answer is there.
- *open loop*: requests at random times, so many a second on average, whether or not answers are done.
- *overhead*: as many prompts at once as there are users, answered by aicc's server and right after by its engine
  without one, again and again; either goes first in turn.
- *prefix*: the first token of a second prompt that begins with the same 1,000 tokens, over the first's.

All servers are up at once and asked in turn, level by level and round by round; one that is not asked waits.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from clients import MODEL, Client, Exchange, Load, closed_loop, open_loop, prefix_seconds, together
from decoder import (
    RESULTS,
    WORKERS,
    Engine,
    WorkerError,
    add_engine_options,
    chosen_engines,
    facts,
    held_out_prompts,
    result_name,
    spread,
    worker,
)

_SERVERS = {"run_openvino_genai.py": "serve_openvino_genai.py", "run_llamacpp_wheel.py": "serve_llamacpp.py"}
_PEERS = ("openvino-genai PA, optimum", "llama.cpp wheel, Q")  # the forms that serve; others are of one user
_PREFIX_TOKENS, _QUESTION_TOKENS = 1000, 16
_START_SECONDS = 120.0


def command(engine: Engine, port: int, folder: Path) -> list[str]:
    """What starts an engine's server."""
    if engine.worker in _SERVERS:
        worker = str(WORKERS / _SERVERS[engine.worker])
        return [str(engine.python), worker, str(engine.model), str(port), json.dumps(engine.options)]
    aicc = [str(engine.python.parent / "aicc"), "serve", f"{MODEL}={engine.model}", "--port", str(port)]
    aicc += ["--threads", str(engine.options["threads"]), "--kv-tokens", str(engine.options["context"])]
    return [*aicc, "--access-log", str(folder / "access.log")]


@contextmanager
def serving(engine: Engine) -> Iterator[int]:
    """An engine's server in a process of its own; gives its port once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "chatter").open("w+") as chatter:
        process = subprocess.Popen(
            command(engine, port, Path(folder)), stdin=subprocess.PIPE, stdout=chatter, stderr=chatter
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    chatter.seek(0)
                    raise WorkerError(f"the server of {engine.name} did not start:\n{chatter.read()[-2000:]}")
                time.sleep(0.1)
            yield port
        finally:
            process.kill()
            process.wait()


def _is_ready(port: int) -> bool:
    for path in ("/health/ready", "/health"):  # aicc's and llama.cpp's
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            return False
    return False


def bare(ask: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Load:
    """All prompts at once inside the engine's process, in one thread with its steps."""
    request = {"prompts": list(prompts), "users": len(prompts), "seconds": 0, "tokens": tokens}
    answer = ask({"users": request})
    exchanges = [Exchange(asked, stamps, len(stamps)) for asked, stamps in answer["exchanges"]]
    return Load(answer["begin"], max(stamps[-1] for _, stamps in answer["exchanges"]), exchanges)


def measure(engines: Sequence[Engine], options: argparse.Namespace, artifact: Path) -> list[dict[str, Any]]:
    """All rounds; one record for each engine, kind of load and level, in the order they were taken."""
    records = []

    def record(name: str, kind: str, level: float, figures: dict[str, Any]) -> None:
        shown = {key: round(value, 4) for key, value in figures.items() if not isinstance(value, list)}
        print(f"round {number + 1}: {name}, {kind} {level:g}: {shown}", file=sys.stderr)
        records.append({"engine": name, "kind": kind, "level": level, "round": number, **figures})

    with ExitStack() as stack:
        # Every engine has its own supply, so that all get the same; the text is some thousand prompts long.
        supply = {engine.name: cycle(held_out_prompts(artifact, options.prompt_tokens)) for engine in engines}
        prefixes = {engine.name: held_out_prompts(artifact, _PREFIX_TOKENS) for engine in engines}
        clients = {
            engine.name: Client(stack.enter_context(serving(engine)), options.decode_tokens) for engine in engines
        }
        for name, client in clients.items():  # what is set up lazily
            closed_loop(client, supply[name], users=1, seconds=0.1)
        for number in range(options.rounds):
            for users in options.users:
                for name, client in clients.items():
                    load = closed_loop(client, supply[name], users, options.seconds)
                    record(name, "closed", users, load.figures())
            for rate in options.rates:
                for name, client in clients.items():
                    load = open_loop(client, supply[name], rate, options.seconds, seed=number)
                    record(name, "open", rate, load.figures())
            for name, client in clients.items():
                prefix = next(prefixes[name])[::-1]  # backwards no prompt begins as it does
                questions = [next(supply[name])[:_QUESTION_TOKENS] for _ in range(2)]
                first, second = prefix_seconds(client, prefix, questions)
                figures = {"first_s": first, "second_s": second, "ratio": second / first}
                record(name, "prefix", _PREFIX_TOKENS, figures)
        for engine in engines:
            if engine.worker != "run_aicc.py":
                continue
            ask, client, prompts = _loaded(stack, engine), clients[engine.name], supply[engine.name]
            for users in sorted({min(options.users), max(options.users)}):
                begun, number = time.monotonic(), 0
                while number < options.pairs or time.monotonic() - begun < options.seconds:
                    same = list(islice(prompts, users))
                    loads = {
                        "served": partial(together, client, same),
                        "bare": partial(bare, ask, same, options.decode_tokens),
                    }
                    for kind in sorted(loads, reverse=bool(number % 2)):
                        record(engine.name, kind, users, loads[kind]().figures())
                    number += 1
    return records


def _loaded(stack: ExitStack, engine: Engine) -> Any:
    """The engine alone, loaded as its server has it."""
    ask = stack.enter_context(worker(engine))
    loading = {"context": engine.options["context"], "prefix_cache": True}
    ask({"load": {"model": str(engine.model), "threads": engine.options["threads"], "options": loading}})
    return ask


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of the rounds, one row for each engine, kind and level."""
    rows: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for record in records:
        row = rows.setdefault((record["kind"], record["level"], record["engine"]), {})
        for key, value in record.items():
            if key not in ("engine", "kind", "level", "round"):
                row.setdefault(key, []).append(value)
    return [
        {"engine": engine, "kind": kind, "level": level, **{key: median(values) for key, values in row.items()}}
        for (kind, level, engine), row in rows.items()
    ]


def overheads(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """What part of the bare engine's tokens a second each server loses, by users; median and extremes of the pairs."""
    rates = {(r["engine"], r["level"], r["round"], r["kind"]): r["tokens_per_s"] for r in records if "requests" in r}
    found: dict[str, dict[str, list[float]]] = {}
    for (engine, users, number, kind), rate in rates.items():
        if kind == "bare":
            lost = 1 - rates[engine, users, number, "served"] / rate
            found.setdefault(engine, {}).setdefault(f"{users:g}", []).append(lost)
    return {engine: {users: spread(lost) for users, lost in by.items()} for engine, by in found.items()}


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tokens/s", "tokens_per_s", lambda v: f"{v:.0f}"),
    ("first token p50, ms", "first_p50_s", lambda v: f"{v * 1e3:.0f}"),
    ("p99", "first_p99_s", lambda v: f"{v * 1e3:.0f}"),
    ("between tokens p50, ms", "gap_p50_s", lambda v: f"{v * 1e3:.1f}"),
    ("p99", "gap_p99_s", lambda v: f"{v * 1e3:.1f}"),
    ("requests", "requests", lambda v: f"{v:.0f}"),
    ("refused", "refused", lambda v: f"{v:.0f}"),
    ("client, of a processor", "client_processors", lambda v: f"{v:.1%}"),
)
_LEVELS = {"closed": "{:g} users", "served": "{:g} users", "bare": "{:g} users", "open": "{:g} requests/s"}
_SUFFIXES = {"served": ", in pairs", "bare": ", engine alone"}


def table(document: dict[str, Any]) -> str:
    """Medians as Markdown, then the overheads and the prefixes."""
    lines = [["load", "engine", *(heading for heading, *_ in _COLUMNS)], ["---", "---", *["---:"] * len(_COLUMNS)]]
    for row in sorted(document["summary"], key=lambda row: (row["kind"] == "open", row["level"])):
        if row["kind"] in _LEVELS:
            name = row["engine"] + _SUFFIXES.get(row["kind"], "")
            cells = [write(row[key]) for _, key, write in _COLUMNS]
            lines.append([_LEVELS[row["kind"]].format(row["level"]), name, *cells])
    notes = [
        f"{engine}: the server costs {lost['median']:.1%} of the engine's tokens/s at {users} users "
        f"({lost['min']:.1%} to {lost['max']:.1%})"
        for engine, by in document["overheads"].items()
        for users, lost in by.items()
    ]
    notes += [
        f"{row['engine']}: first token after {row['level']} tokens {row['first_s'] * 1e3:.0f} ms, "
        f"with them known {row['second_s'] * 1e3:.0f} ms ({row['ratio']:.1%})"
        for row in document["summary"]
        if row["kind"] == "prefix"
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" + "\n".join(f"- {n}" for n in notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; print a table and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_options(parser)
    parser.set_defaults(rounds=3)
    parser.add_argument("--pairs", type=int, default=5, help="least with and without a server (default: %(default)s)")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64], help="levels of the closed loop")
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 2], help="levels of the open loop, requests/s")
    parser.add_argument("--seconds", type=float, default=20, help="of each load (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/serve/DATE-MACHINE[-int8].json")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers too
    if options.decode_tokens < 2:
        parser.error("--decode-tokens must be at least 2, for there to be a time between tokens.")

    sequence = options.prompt_tokens + options.decode_tokens
    longest = max(sequence, _PREFIX_TOKENS + _QUESTION_TOKENS + options.decode_tokens)
    users = max(options.users)
    engines, artifact = chosen_engines(options, context=users * sequence + longest)
    engines = [engine for engine in engines if engine.name.startswith(("aicc", *_PEERS))]
    if options.bits == 4:
        engines = [engine for engine in engines if "Q4_K_M" not in engine.name]  # Q4_0 is llama.cpp's faster one
    for engine in engines:
        engine.options |= {"users": users, "sequence_tokens": longest, "threads": options.threads}
    document = facts() | {"load_average": {"before": os.getloadavg()}}
    records = measure(engines, options, artifact)
    document["load_average"]["after"] = os.getloadavg()
    document |= {
        "model": Path(options.model).name,
        **{
            name: getattr(options, name)
            for name in ("threads", "rounds", "pairs", "seconds", "prompt_tokens", "decode_tokens")
        },
        "engines": [{"name": engine.name, "weights": engine.weights} for engine in engines],
        "summary": summary(records),
        "overheads": overheads(records),
        "records": records,
    }
    output = options.output or RESULTS / "serve" / f"{result_name(document, options.bits)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    print(f"\nMedians of {options.rounds} rounds: {output}")


if __name__ == "__main__":
    main()
