"""Servers under load: what the clients note, what is made of it, and a whole run against our own server."""

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path

import clients
import pytest
import serve
from hypothesis import given
from hypothesis import strategies as st

from aicc.runtime.artifact import Artifact


def answer(events: list[dict], status: int = 200) -> bytes:
    """An answer as a server sends it, each event a chunk of its own."""
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    head = f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


TEXTS = ["a", "", "data: {}", 'c"}\n', "é"]
EVENTS = [{"choices": [{"text": text}]} for text in TEXTS] + [{"choices": [], "usage": {"completion_tokens": 5}}]


@given(st.sets(st.integers(1, len(answer(EVENTS)) - 1)))
def test_an_event_has_arrived_when_its_last_byte_has_however_the_bytes_are_cut(cuts: set[int]):
    whole, ends = answer(EVENTS), [*sorted(cuts), len(answer(EVENTS))]
    pieces = [
        (float(end), whole[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)
    ]  # a byte's time is its place
    exchange = clients.Client(0, tokens=5).read(0.0, pieces)
    assert exchange is not None
    assert exchange.tokens == 5
    lasts = [whole.index(json.dumps(event).encode()) + len(json.dumps(event)) for event in EVENTS[:5]]
    with_text = [last for last, text in zip(lasts, TEXTS, strict=True) if text]
    assert list(exchange.stamps) == [min(end for end in ends if end >= last) for last in with_text]


def test_a_busy_server_is_no_failure_but_an_error_and_a_short_answer_are():
    client = clients.Client(0, tokens=6)
    assert client.read(0.0, [(1.0, answer([], status=429))]) is None
    for bad in (answer([], status=500), answer(EVENTS), b""):
        with pytest.raises(clients.LoadError):
            client.read(0.0, [(1.0, bad)])


def test_tokens_count_until_the_end_and_times_from_when_a_request_was_due():
    exchanges = [clients.Exchange(0.0, [1.0, 2.0, 4.0, 7.0], 8), clients.Exchange(1.0, [6.0, 9.0, 12.0, 15.0], 4)]
    figures = clients.Load(begin=0.0, end=10.0, exchanges=exchanges, refused=3, client_seconds=2.0).figures()
    assert figures == {
        "tokens_per_s": (8 + 2) / 10,
        "first_p50_s": 1.0,
        "first_p99_s": 5.0,
        "gap_p50_s": 3.0,
        "gap_p99_s": 3.0,
        "requests": 2,
        "refused": 3,
        "client_processors": 0.2,
    }


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int):
    found = clients.percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_an_open_loop_asks_when_requests_are_due_whether_or_not_others_are_answered():
    asked: list[float] = []
    everybody = asyncio.Event()

    class Slow(clients.Client):
        async def ask(self, ids, due):
            asked.append(due)
            if len(asked) == expected:
                everybody.set()
            await everybody.wait()
            return due, [(due + 1, answer(EVENTS))]

    choices = random.Random(3)
    due = [choices.expovariate(1000) for _ in range(400)]
    expected = next(i for i in range(400) if sum(due[: i + 1]) >= 0.1)
    load = clients.open_loop(Slow(0, tokens=5), iter(lambda: [1], None), rate=1000, seconds=0.1, seed=3)
    assert len(load.exchanges) == expected
    assert [later - earlier for earlier, later in pairwise(asked)] == pytest.approx(due[1:expected])


def test_servers_overhead_is_of_the_same_pair_and_level():
    def record(kind: str, number: int, level: int, rate: float) -> dict:
        figures = {"tokens_per_s": rate, "requests": 1}
        return {"engine": "aicc", "kind": kind, "level": level, "round": number, **figures}

    records = [record("served", 0, 1, 90), record("bare", 0, 1, 100), record("bare", 1, 1, 50)]
    records += [record("served", 1, 1, 40), record("closed", 0, 1, 300), record("closed", 0, 4, 300)]
    assert serve.overheads(records) == {"aicc": {"1": pytest.approx({"median": 0.15, "min": 0.1, "max": 0.2})}}


def test_our_own_server_is_loaded_beside_its_engine(cpu_artifact: Artifact, tmp_path: Path, capsys):
    output = tmp_path / "result.json"
    chosen = ["--artifact", f"demo={cpu_artifact.path}", "--only", "aicc", "--rounds", "1", "--threads", "1"]
    sizes = ["--prompt-tokens", "5", "--decode-tokens", "4", "--seconds", "0.2", "--users", "1", "3"]
    serve.main([*chosen, *sizes, "--pairs", "2", "--rates", "20", "--output", str(output)])
    document = json.loads(output.read_text())
    assert {(row["kind"], row["level"]) for row in document["summary"]} == {
        *((kind, users) for kind in ("closed", "served", "bare") for users in (1, 3)),
        *(("open", 20), ("prefix", 1000)),
    }
    assert set(document["overheads"]["aicc"]) == {"1", "3"}
    for record in document["records"]:
        if record["kind"] in ("closed", "served", "bare"):
            assert record["requests"] >= record["level"]
            assert record["tokens_per_s"] > 0
    (prefix,) = [row for row in document["summary"] if row["kind"] == "prefix"]
    assert prefix["ratio"] == pytest.approx(prefix["second_s"] / prefix["first_s"])
    text = capsys.readouterr().out
    assert serve.table(document) in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_server_that_cannot_start_is_reported_with_what_it_said(tmp_path: Path):
    broken = serve.Engine("aicc", "some", Path(serve.sys.executable), "run_aicc.py", tmp_path / "nothing", 1, 1, 1)
    broken.options |= {"threads": 1, "context": 64}
    with (
        pytest.raises(serve.WorkerError, match=r"server of aicc did not start:\n(.|\n)*nothing"),
        serve.serving(broken),
    ):
        pass
