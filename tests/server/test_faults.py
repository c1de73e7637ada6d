"""Steps that fail, an engine that is killed, memory that runs out: whoever asked is told, and nothing stays behind."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from devices import Device
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import DEADLINE, NAME, health, listening, wait_idle, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Limits, create_app

MESSAGES = [{"role": "user", "content": "Count to a thousand."}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/responses": {"input": "Count to a thousand."},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "Once"},
}
ASKED: dict[str, Any] = {"prompt": "Once", "ignore_eos": True, "temperature": 0}


@contextmanager
def serving(device: Device, artifact: Artifact) -> Iterator[str]:
    """A server of its own over a device, taking up to 16 sequences."""
    with listening(create_app({NAME: Model(device, artifact)}, Limits(sequences=16))) as url:  # type: ignore[arg-type]
        yield url


@pytest.fixture
def device(executable: DecoderExecutable) -> Device:
    return Device(executable)


def ask(url: str, path: str, body: dict[str, Any], stream: bool = False) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"model": NAME, "stream": stream, **body}, timeout=DEADLINE)


def arrived(url: str, sequences: int) -> None:
    wait_until(lambda: health(url)["sequences"] == sequences, "arriving")


def failure_of(answer: httpx.Response, path: str) -> tuple[int, str]:
    """Status and message of an answer that is an error or a stream that ends with one, in its API's shape."""
    lines = [line for line in answer.text.splitlines() if line]
    last = json.loads(lines[-1].removeprefix("data: "))
    if path == "/v1/responses" and answer.status_code == 200:
        assert set(last) == {"type", "sequence_number", "message", "code", "param"}
        assert last["type"] == "error"
        return 200, last["message"]
    assert set(last) == {"error"}
    if path.startswith("/api/"):
        return answer.status_code, last["error"]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["type"] == "server_error"
    return answer.status_code, last["error"]["message"]


def test_when_the_engine_is_killed_everybody_is_told_in_every_api(device: Device, demo_artifact: Artifact) -> None:
    endless = {"max_tokens": 4000, **ASKED, "n": 2}
    with serving(device, demo_artifact) as url, ThreadPoolExecutor(16) as callers:
        running = [callers.submit(ask, url, "/v1/completions", endless, stream) for stream in (True, False)]
        arrived(url, 4)
        wait_until(lambda: device.steps > 3, "running")
        device.running.clear()
        assert device.halted.wait(DEADLINE)
        waiting = {
            (path, stream): callers.submit(ask, url, path, body, stream)
            for path, body in PATHS.items()
            for stream in (True, False)
        }
        arrived(url, 4 + len(waiting))
        device.killed = True
        device.running.set()

        gone = "The model has failed or is being shut down."
        for stream, answer in zip((True, False), running, strict=True):
            assert failure_of(answer.result(), "/v1/completions") == (200 if stream else 503, gone)
        for (path, stream), answer in waiting.items():  # a stream whose prompt was not read yet has not begun either
            status, message = failure_of(answer.result(), path)
            assert (status == 503 or (stream and status == 200), message) == (True, gone)
        for path, body in PATHS.items():
            assert failure_of(ask(url, path, body), path) == (503, gone)
        for probe in ("/health/ready", "/health/live", "/v2/health/ready"):
            answer = httpx.get(f"{url}{probe}")
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert 'aicc_model_ready{model="smollm2"} 0.0' in httpx.get(f"{url}/metrics").text
        wait_idle(url)


def test_sequences_that_run_out_of_pages_take_turns_and_all_end(device: Device, demo_artifact: Artifact) -> None:
    tokens = 3 * device.page_size
    device.page_count = 6  # one sequence fills four of them
    with serving(device, demo_artifact) as url, ThreadPoolExecutor(4) as callers:
        device.running.clear()
        answers = [
            callers.submit(ask, url, "/v1/completions", ASKED | {"prompt": prompt, "max_tokens": tokens, "n": 2})
            for prompt in ("Once", "Twice", "Never", "A cat")
        ]
        arrived(url, 8)
        device.running.set()

        for answer in answers:
            assert answer.result().json()["usage"]["completion_tokens"] == 2 * tokens
        preempted = next(
            line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("aicc_preemptions_total")
        )
        assert float(preempted.split()[-1]) > 0
        never = ask(url, "/v1/completions", {"prompt": [1] * (6 * device.page_size + 1)})
        assert (never.status_code, never.json()["error"]["code"]) == (400, "context_length_exceeded")
        full = ask(url, "/v1/completions", ASKED | {"prompt": [1] * (6 * device.page_size - 2), "max_tokens": 99})
        assert full.json()["choices"][0]["finish_reason"] == "length"
        assert full.json()["usage"]["total_tokens"] == 6 * device.page_size
        wait_idle(url)


@settings(max_examples=12)
@given(
    breaks=st.sets(st.integers(0, 12), max_size=4),
    asked=st.lists(st.tuples(st.sampled_from([1, 5, 40]), st.booleans(), st.integers(1, 2)), min_size=1, max_size=5),
)
def test_whichever_steps_fail_every_request_is_answered_or_told(
    executable: DecoderExecutable, demo_artifact: Artifact, breaks: set[int], asked: list[tuple[int, bool, int]]
) -> None:
    device = Device(executable)
    device.page_count, device.breaks = 5, breaks
    dead = any({step, step + 1, step + 2} <= breaks for step in breaks)
    with serving(device, demo_artifact) as url, ThreadPoolExecutor(5) as callers:
        device.running.clear()
        answers = [
            callers.submit(ask, url, "/v1/completions", ASKED | {"max_tokens": tokens, "n": n}, stream)
            for tokens, stream, n in asked
        ]
        arrived(url, sum(n for _, _, n in asked))
        device.running.set()

        for (tokens, stream, n), pending in zip(asked, answers, strict=True):
            answer = pending.result()
            if answer.status_code == 200 and stream and answer.text.endswith("data: [DONE]\n\n"):
                assert answer.text.count('"finish_reason":"length"') == n
            elif answer.status_code == 200 and not stream:
                assert answer.json()["usage"]["completion_tokens"] == n * tokens
            else:
                status, message = failure_of(answer, "/v1/completions")
                assert status in ((200,) if stream else (500, 503))
                assert breaks
                assert "secret" not in message
        wait_until(lambda: health(url)["sequences"] == 0, "ending")
        assert dead or health(url)["status"] == "ready"
        wait_idle(url)
