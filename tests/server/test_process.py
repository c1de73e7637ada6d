"""`serve` as a process: where it listens, what it says, and how it ends."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from devices import GO_ON, HALT
from live_server import DEADLINE, NAME, ServerProcess, health, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import AiccError, MismatchError, UsageError
from aicc.runtime.server import serve

LONG: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 40, "ignore_eos": True, "stream": True}


@contextmanager
def streaming(server: ServerProcess, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """A stream whose first event has come; gives the others."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=DEADLINE) as answer:
        events = (line for line in answer.iter_lines() if line)
        next(events)
        yield events


@contextmanager
def answering(server: ServerProcess, bodies: Sequence[dict[str, Any]]) -> Iterator[list[Future[httpx.Response]]]:
    """Requests that the server has begun to answer; its device is halted, and goes on afterwards."""
    server.wait_ready()
    os.kill(server.process.pid, HALT)
    wait_until(lambda: server.said("halted"), "halting")
    with ThreadPoolExecutor(len(bodies)) as callers:
        ask = partial(httpx.post, f"{server.url}/v1/completions", timeout=DEADLINE)
        answers = [callers.submit(ask, json=body) for body in bodies]
        wait_until(lambda: health(server.url)["sequences"] == len(bodies), "taking the requests")
        try:
            yield answers
        finally:
            os.kill(server.process.pid, GO_ON)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_ends_well(demo_artifact: Artifact, sent: signal.Signals) -> None:
    asked = LONG | {"stream_options": {"include_usage": True}}
    with ServerProcess(demo_artifact.path, devices=True, drain_seconds=3600) as server:
        with answering(server, [asked]) as [answer]:
            os.kill(server.process.pid, sent)
            wait_until(lambda: server.said("stopping: running answers (1)"), "stopping")
        *_, usage, last = (line for line in answer.result().text.splitlines() if line)

        assert last == "data: [DONE]"
        assert '"completion_tokens":40' in usage
        assert server.end() == 0
        assert not server.said("Traceback")


def test_a_generation_longer_than_the_limit_ends_with_an_error(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path, drain_seconds=1) as server:
        server.wait_ready()
        with streaming(server, LONG | {"max_tokens": 8000}) as events:
            os.kill(server.process.pid, signal.SIGTERM)
            *_, last = events

        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_unavailable"
        assert server.end() == 0


def test_a_signal_under_load_loses_no_answer_that_was_begun(demo_artifact: Artifact) -> None:
    streamed = LONG | {"stream_options": {"include_usage": True}}
    whole = LONG | {"stream": False}
    with ServerProcess(demo_artifact.path, devices=True, drain_seconds=3600) as server:
        with answering(server, [streamed, whole] * 4) as answers:
            os.kill(server.process.pid, signal.SIGTERM)
            wait_until(lambda: server.said("stopping: running answers (8)"), "stopping")
        texts = [answer.result().text for answer in answers]

        assert all('"completion_tokens":40' in text for text in texts)
        assert server.end() == 0
        assert not server.said("Traceback")


def test_while_it_drains_it_is_not_ready_and_sends_new_requests_elsewhere(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path, drain_seconds=3600) as server:
        server.wait_ready()
        with streaming(server, LONG | {"max_tokens": 8000}) as events:
            os.kill(server.process.pid, signal.SIGTERM)
            wait_until(lambda: server.said("stopping"), "stopping")
            with httpx.Client(base_url=server.url, timeout=DEADLINE) as http:
                refused = [http.get("/v1/models"), http.post("/v1/completions", json=LONG)]
                ready, live, scraped = (http.get(path) for path in ("/health/ready", "/health/live", "/metrics"))
            next(events)  # goes on all the while

        for answer in refused:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
            assert int(answer.headers["retry-after"]) >= 1
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (live.status_code, scraped.status_code) == (200, 200)
        assert server.end() == 0


def test_the_second_signal_ends_it_at_once(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path, drain_seconds=3600) as server:
        server.wait_ready()
        with streaming(server, LONG | {"max_tokens": 8000}):
            os.kill(server.process.pid, signal.SIGTERM)
            wait_until(lambda: server.said("stopping"), "stopping")
            os.kill(server.process.pid, signal.SIGTERM)

            assert server.end() == -signal.SIGTERM


def test_killed_under_load_it_hangs_up_on_everybody_and_starts_again_on_the_same_port(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path) as server:
        server.wait_ready()
        with streaming(server, LONG | {"max_tokens": 8000}) as events:
            server.process.kill()
            with pytest.raises(httpx.TransportError):
                list(events)
    with ServerProcess(demo_artifact.path, port=urlsplit(server.url).port) as again:
        again.wait_ready()
        answer = httpx.post(f"{again.url}/v1/completions", json=LONG, timeout=DEADLINE)

    assert again.url == server.url
    assert answer.text.endswith("data: [DONE]\n\n")


def accepts(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), DEADLINE).close()
    except ConnectionRefusedError:
        return False
    return True


def test_it_says_where_it_listens_and_where_it_runs(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path) as server:
        server.wait_ready()

        assert server.lines[0].startswith(f"serving {NAME} at http://127.0.0.1:")
        assert health(server.url)["device"] in server.lines[1]


@pytest.mark.parametrize("nobody", ["2>/dev/full", "<&- >&- 2>&-", "2>&1 >/dev/null | head -1"])
def test_it_serves_though_nobody_hears_what_it_says(demo_artifact: Artifact, nobody: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = f"from aicc.runtime.server import serve; serve([({NAME!r}, {str(demo_artifact.path)!r})], port={port})"
    shell = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {nobody}', sys.executable, code]
    server = subprocess.Popen(shell, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: accepts(url), "listening")
        wait_until(lambda: health(url)["status"] != "loading", "loading")
        answer = httpx.post(f"{url}/v1/completions", json=LONG, timeout=DEADLINE)
        os.killpg(server.pid, signal.SIGTERM)

        assert answer.text.endswith("data: [DONE]\n\n")
        wait_until(lambda: not accepts(url), "stopping")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_callers_who_take_all_descriptors_wait_and_fill_no_log(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path) as server:
        server.wait_ready()
        url = urlsplit(server.url)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (48, 48))
        with ExitStack() as callers:
            for _ in range(100):
                callers.enter_context(socket.create_connection((url.hostname, url.port), DEADLINE))
            wait_until(lambda: server.said("New connections wait until others end"), "saying so")
        assert httpx.get(f"{server.url}/health/live", timeout=DEADLINE).status_code == 200

        os.kill(server.process.pid, signal.SIGTERM)
        assert server.end() == 0
        assert sum("New connections" in line for line in server.lines) == 1
        assert not server.said("Traceback"), server.lines


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_it_refuses_addresses_others_can_reach(demo_artifact: Artifact, host: str) -> None:
    with pytest.raises(UsageError, match="refusing to listen") as caught:
        serve([(None, demo_artifact.path)], host, 0)

    assert "--insecure" in caught.value.remedy
    assert "--api-key-file" in caught.value.remedy


def test_it_listens_anywhere_if_told_it_may(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path, host="0.0.0.0", insecure=True) as server:
        assert server.said("http://0.0.0.0:")
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert accepts(url)
        assert httpx.get(f"{url}/v1/models", headers={"host": "models.example"}).status_code == 200


def test_it_answers_to_no_name_but_its_own_unless_told_it_may(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        assert httpx.get(f"{server.url}/v1/models", headers={"host": "models.example"}).status_code == 400


def test_an_address_in_use_is_named(demo_artifact: Artifact) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127.0.0.1 port {port} \(Address already in use\)\."):
            serve([(None, demo_artifact.path)], port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(demo_artifact: Artifact, port: int) -> None:
    with pytest.raises(UsageError, match="is not a port"):
        serve([(None, demo_artifact.path)], port=port)


def test_no_artifact_no_server(tmp_path: Path) -> None:
    with pytest.raises(AiccError, match="nowhere"):
        serve([(None, tmp_path / "nowhere.aicc")])


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(demo_artifact: Artifact) -> None:
    said: list[str] = []

    with pytest.raises(MismatchError, match="npu"):
        serve([(None, demo_artifact.path)], port=0, device="npu", announce=said.append)

    assert "loading the model" in said[0]
    assert not any("ready" in line for line in said)


def test_the_server_needs_nothing_of_the_compiler() -> None:
    code = "import sys, aicc.runtime.server; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"onnx", "onnx_ir", "torch", "transformers", "openvino"} & set(loaded)
