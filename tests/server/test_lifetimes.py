"""What ends a generation besides the model: callers who leave, queues that fill, devices that fail."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from devices import Device
from live_server import DEADLINE, NAME, health, listening, wait_idle, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import IntegrityError, UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Limits, create_app
from aicc.runtime.server.app import Service, build_app
from aicc.runtime.server.openai import completion_form
from aicc.runtime.server.openai.forms import token_text
from aicc.runtime.server.registry import Registry, served
from aicc.runtime.tokenizer import Tokenizer

# Goes on until the context is full, minutes from now, unless somebody ends it.
ENDLESS: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "temperature": 0}
SHORT: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 2}


@contextmanager
def streaming(url: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """A stream whose first event has come; gives the others, and leaving closes the connection."""
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=DEADLINE) as answer:
        events = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(events)
        yield events


@contextmanager
def connected(url: str, body: dict[str, Any], announced: int = 0) -> Iterator[socket.socket]:
    """A plain connection that has sent a request and not read the answer; leaving closes it."""
    content = json.dumps(body).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {announced or len(content)}", "", ""])
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=DEADLINE) as connection:
        connection.sendall(head.encode() + content)
        yield connection


class HaltedTokenizer:
    """The demo model's tokenizer, which encodes nothing until told to run."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.running = threading.Event()
        self.halted = threading.Event()
        self.encoded = 0

    def encode(self, text: str) -> list[int]:
        self.encoded += 1
        self.halted.set()
        assert self.running.wait(DEADLINE)
        return self._tokenizer.encode(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def device(executable: DecoderExecutable) -> Device:
    return Device(executable)


@pytest.fixture
def device_url(device: Device, demo_artifact: Artifact) -> Iterator[str]:
    """A server of its own over the device, taking two sequences."""
    model = Model(device, demo_artifact)  # type: ignore[arg-type]
    with listening(create_app({NAME: model}, Limits(sequences=2, body_seconds=0.2))) as url:
        yield url


def test_leaving_a_stream_ends_it_and_frees_its_memory(url: str) -> None:
    with streaming(url, ENDLESS):
        now = health(url)
        assert now["sequences"] == 1
        assert now["kv_pages_free"] < now["kv_pages"]

    wait_idle(url)


def test_leaving_a_stream_of_several_choices_ends_them_all(url: str) -> None:
    with streaming(url, ENDLESS | {"n": 3, "prompt": ["Once", "Twice"]}):
        assert health(url)["sequences"] == 6

    wait_idle(url)


def test_leaving_before_the_whole_answer_ends_it(url: str) -> None:
    with connected(url, ENDLESS):
        wait_until(lambda: health(url)["sequences"] == 1, "starting")

    wait_idle(url)


def test_who_leaves_before_the_first_step_never_runs(device: Device, device_url: str) -> None:
    device.running.clear()
    with connected(device_url, SHORT):
        assert device.halted.wait(DEADLINE)
        with connected(device_url, ENDLESS):
            wait_until(lambda: health(device_url)["sequences"] == 2, "queueing")
    device.running.set()

    wait_idle(device_url)


def test_who_leaves_costs_no_step_after_the_one_that_runs(device: Device, device_url: str) -> None:
    with streaming(device_url, ENDLESS):
        device.running.clear()
        assert device.halted.wait(DEADLINE)
        steps = device.steps
        counted = 'outcome="cancelled"'
        assert counted not in httpx.get(f"{device_url}/metrics").text
    wait_until(lambda: counted in httpx.get(f"{device_url}/metrics").text, "noticing")
    device.running.set()
    wait_idle(device_url)

    assert device.steps == steps


def test_a_server_with_enough_to_do_says_when_to_come_back(device_url: str) -> None:
    with streaming(device_url, ENDLESS):
        refused = httpx.post(f"{device_url}/v1/completions", json=SHORT | {"n": 2})
        accepted = httpx.post(f"{device_url}/v1/completions", json=SHORT, timeout=DEADLINE)

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert accepted.status_code == 200
    wait_idle(device_url)
    with openai.OpenAI(base_url=f"{device_url}/v1", api_key="none") as client:
        assert len(client.completions.create(**SHORT, n=2).choices) == 2


def test_the_official_client_comes_back_when_it_is_told_to(device_url: str) -> None:
    refusals = 0
    with ExitStack() as busy:
        busy.enter_context(streaming(device_url, ENDLESS | {"n": 2}))

        def make_room(answer: httpx.Response) -> None:
            nonlocal refusals
            if answer.status_code == 429:
                refusals += 1
                busy.close()
                wait_idle(device_url)

        http = httpx.Client(event_hooks={"response": [make_room]})
        with openai.OpenAI(base_url=f"{device_url}/v1", api_key="none", max_retries=1, http_client=http) as client:
            answer = client.completions.create(**SHORT)

    assert refusals == 1
    assert answer.choices[0].finish_reason == "length"


def test_closing_a_stream_of_the_official_client_ends_it(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model=NAME, prompt="Once", stream=True, extra_body=ENDLESS)
        next(stream)
        stream.close()

        wait_idle(url)


def test_a_client_that_waits_no_longer_ends_what_it_asked_for(url: str) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.3) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.completions.create(model=NAME, prompt="Once", extra_body=ENDLESS)

    wait_idle(url)


def test_prompts_that_are_still_being_tokenised_count_and_end_when_who_sent_them_leaves(
    device: Device, demo_artifact: Artifact
) -> None:
    model = Model(device, demo_artifact)  # type: ignore[arg-type]
    tokenizer = HaltedTokenizer(model.tokenizer)
    model._tokenizer = tokenizer  # type: ignore[assignment]
    with listening(create_app({NAME: model}, Limits(sequences=2))) as url:
        try:
            with connected(url, SHORT), connected(url, SHORT | {"stream": True}):
                assert tokenizer.halted.wait(DEADLINE)  # by one; the other waits for its turn
                wait_until(lambda: health(url)["sequences"] == 2, "arriving")
                refused = httpx.post(f"{url}/v1/completions", json=SHORT)
            wait_idle(url)
        finally:
            tokenizer.running.set()
        accepted = httpx.post(f"{url}/v1/completions", json=SHORT | {"n": 2}, timeout=DEADLINE)
        wait_idle(url)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert accepted.status_code == 200
    assert tokenizer.encoded == 2  # what waited for its turn was never tokenised


@pytest.mark.parametrize("stream", [False, True])
def test_while_a_long_answer_is_written_others_go_on(
    device: Device, demo_artifact: Artifact, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, alive = threading.Event(), threading.Event()

    def halted(model: Model, token: int) -> str:
        writing.set()
        assert alive.wait(DEADLINE)
        return token_text(model, token)

    monkeypatch.setattr(completion_form, "token_text", halted)
    model = Model(device, demo_artifact)  # type: ignore[arg-type]
    told = {"model": NAME, "prompt": [5, 6], "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    with listening(create_app({NAME: model})) as url, ThreadPoolExecutor(1) as caller:
        try:
            answer = caller.submit(httpx.post, f"{url}/v1/completions", json=told, timeout=2 * DEADLINE)
            assert writing.wait(DEADLINE)
            assert httpx.get(f"{url}/health/live", timeout=DEADLINE).status_code == 200
        finally:
            alive.set()

        said = answer.result().text.removeprefix("data: ").split("\n")[0]
        assert len(json.loads(said)["choices"][0]["logprobs"]["tokens"]) == 2


def test_a_prompt_that_is_refused_leaves_room_for_others(device_url: str) -> None:
    for _ in range(3):
        refused = httpx.post(f"{device_url}/v1/completions", json=SHORT | {"prompt": "", "n": 2})
        assert refused.status_code == 400

    assert health(device_url)["sequences"] == 0


def test_a_body_that_does_not_come_is_a_408(device_url: str) -> None:
    with connected(device_url, SHORT, announced=10_000) as connection:
        answer = connection.makefile("rb").read()  # until the server closes

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_a_step_that_fails_is_an_error_and_the_next_request_works(device: Device, device_url: str) -> None:
    device.broken = True
    failed = httpx.post(f"{device_url}/v1/completions", json=SHORT)
    device.broken = False
    worked = httpx.post(f"{device_url}/v1/completions", json=SHORT, timeout=DEADLINE)

    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "secret" not in failed.text
    assert worked.status_code == 200
    wait_idle(device_url)


def test_a_stream_that_fails_ends_with_the_error(device: Device, device_url: str) -> None:
    with (
        openai.OpenAI(base_url=f"{device_url}/v1", api_key="none", max_retries=0) as client,
        client.completions.create(model=NAME, prompt="Once", stream=True, extra_body=ENDLESS) as stream,
    ):
        next(stream)
        device.broken = True
        with pytest.raises(openai.APIError, match="failed on this request"):
            list(stream)

    wait_idle(device_url)


def test_a_device_that_keeps_failing_takes_the_server_out_of_service(device: Device, device_url: str) -> None:
    device.broken = True
    statuses = [httpx.post(f"{device_url}/v1/completions", json=SHORT).status_code for _ in range(3)]
    wait_until(lambda: health(device_url)["status"] == "failed", "giving up")
    refused = httpx.post(f"{device_url}/v1/completions", json=SHORT)

    assert statuses == [500] * 3
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert httpx.get(f"{device_url}/health/ready").status_code == 503
    assert httpx.get(f"{device_url}/health/live").status_code == 503


def test_requests_at_fault_themselves_do_not_take_the_server_out_of_service(
    executable: DecoderExecutable, demo_artifact: Artifact
) -> None:
    class TooCostly:
        finished = False

        def mask(self) -> None:
            raise UsageError("the json_object cannot be enforced: it has too many states.")

    model = Model(executable, demo_artifact)
    model.constraint = lambda *_: TooCostly()  # type: ignore[method-assign, assignment, return-value]
    asked = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Hello"}],
        "response_format": {"type": "json_object"},
    }
    with listening(create_app({NAME: model})) as url:
        statuses = [httpx.post(f"{url}/v1/chat/completions", json=asked).status_code for _ in range(4)]
        wait_idle(url)

    assert statuses == [400] * 4


def test_a_server_that_stops_ends_what_does_not_finish(executable: DecoderExecutable, demo_artifact: Artifact) -> None:
    model = Model(executable, demo_artifact)
    with ExitStack() as server:
        url = server.enter_context(listening(create_app({NAME: model})))
        with streaming(url, ENDLESS) as events:
            server.close()
            with pytest.raises(httpx.RemoteProtocolError):
                list(events)

    assert model.engine.free_pages == model.engine.page_count


def test_prompts_that_wait_to_be_tokenised_when_the_server_ends_get_an_error(
    executable: DecoderExecutable, demo_artifact: Artifact
) -> None:
    model = Model(executable, demo_artifact)
    tokenizer = HaltedTokenizer(model.tokenizer)
    model._tokenizer = tokenizer  # type: ignore[assignment]
    registry = Registry([served(NAME, model.manifest, lambda: model, 8)])
    with listening(build_app(Service(registry))) as url, ThreadPoolExecutor(2) as callers:
        ask = partial(httpx.post, f"{url}/v1/completions", json=SHORT, timeout=DEADLINE)
        answers = [callers.submit(ask) for _ in range(2)]
        try:
            wait_until(lambda: health(url)["sequences"] == 2, "arriving")
            assert tokenizer.halted.wait(DEADLINE)
            for each in registry:
                each.stop()
        finally:
            tokenizer.running.set()
        refused = [answer.result() for answer in answers]

    assert [answer.status_code for answer in refused] == [503, 503]
    assert {answer.json()["error"]["code"] for answer in refused} == {"model_unavailable"}


@pytest.fixture
def loading(model: Model) -> Iterator[tuple[str, threading.Event, list[Exception]]]:
    """A server whose model takes as long to load as the test likes: its address, what ends loading, and how."""
    loaded = threading.Event()
    failures: list[Exception] = []

    def load() -> Model:
        assert loaded.wait(DEADLINE)
        for failure in failures:
            raise failure
        return model

    registry = Registry([served(NAME, model.manifest, load, 8, lambda thread: None)])
    app = build_app(Service(registry))
    try:
        with listening(app, until="loading") as url:
            yield url, loaded, failures
            loaded.set()
    finally:
        loaded.set()


def test_while_it_loads_a_server_lives_and_is_not_ready(loading: tuple[str, threading.Event, list[Exception]]) -> None:
    url, loaded, _ = loading
    early = httpx.post(f"{url}/v1/completions", json=SHORT)

    assert httpx.get(f"{url}/health/live").status_code == 200
    assert httpx.get(f"{url}/health/ready").status_code == 503
    progress = health(url)["loading"]
    assert (progress["phase"], progress["number"], progress["phases"]) == ("model", 1, 2)
    assert 0 <= progress["seconds"] < health(url)["loading"]["seconds"] + 0.001
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == NAME
    assert (early.status_code, early.json()["error"]["code"]) == (503, "model_loading")
    assert "retry-after" in early.headers

    loaded.set()
    wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, "loading")
    assert health(url)["loading"] is None
    assert httpx.post(f"{url}/v1/completions", json=SHORT, timeout=DEADLINE).status_code == 200


def test_a_model_that_cannot_be_loaded_is_a_503(loading: tuple[str, threading.Event, list[Exception]]) -> None:
    url, loaded, failures = loading
    failures.append(IntegrityError("/secret/weights.bin is truncated."))
    loaded.set()
    wait_until(lambda: health(url)["status"] == "failed", "failing")

    answer = httpx.post(f"{url}/v1/completions", json=SHORT)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert "secret" not in answer.text
    assert httpx.get(f"{url}/health/live").status_code == 503
