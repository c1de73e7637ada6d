"""The access log: one JSON line a request, with an id the caller gets too, and never the prompt unless asked."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import DEADLINE, NAME, ServerProcess, listening, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import AccessLog, Front, create_app, serve

SECRET = "the rain in Spain"
ASKED: dict[str, Any] = {"model": NAME, "prompt": SECRET, "max_tokens": 3, "ignore_eos": True}


class Log:
    """A server that logs to a file, and the lines it wrote."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="ascii").splitlines()]

    def one(self, ask: Callable[[], object]) -> dict[str, Any]:
        """The line of the request that ``ask`` makes."""
        before = len(self.lines())
        ask()
        wait_until(lambda: len(self.lines()) > before, "logging")
        [line] = self.lines()[before:]
        return line


@contextmanager
def logging_server(executable: DecoderExecutable, artifact: Artifact, path: Path, prompts: bool) -> Iterator[Log]:
    front = Front(access_log=AccessLog(path, prompts))
    with listening(create_app({NAME: Model(executable, artifact)}, front=front)) as url:
        yield Log(url, path)


@pytest.fixture(scope="module")
def log(
    executable: DecoderExecutable, demo_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Log]:
    path = tmp_path_factory.mktemp("log") / "access.jsonl"
    with logging_server(executable, demo_artifact, path, prompts=False) as log:
        yield log


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_one_line_with_its_tokens_and_times(log: Log, stream: bool) -> None:
    answers: list[httpx.Response] = []
    asked = ASKED | {"stream": stream, "n": 2}
    line = log.one(lambda: answers.append(httpx.post(f"{log.url}/v1/completions", json=asked, timeout=DEADLINE)))

    assert line["request_id"] == answers[0].headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert (line["model"], line["client"]) == (NAME, "127.0.0.1")
    assert line["prompt_tokens"] == 4
    assert line["completion_tokens"] == 6
    assert line["finish_reasons"] == ["length", "length"]
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert SECRET not in json.dumps(line)


def test_an_error_is_a_line_with_its_code(log: Log) -> None:
    line = log.one(lambda: httpx.post(f"{log.url}/v1/completions", json=ASKED | {"model": "other"}))

    assert (line["status"], line["error"]) == (404, "model_not_found")
    assert "model" not in line


def test_who_hangs_up_is_a_line_that_says_so(log: Log) -> None:
    def hang_up() -> None:
        body = ASKED | {"stream": True, "max_tokens": 8000}
        with httpx.stream("POST", f"{log.url}/v1/completions", json=body, timeout=DEADLINE) as answer:
            next(answer.iter_lines())

    assert log.one(hang_up)["finish_reasons"] == ["cancelled"]


def test_health_probes_are_left_out_and_queries_too(log: Log) -> None:
    httpx.get(f"{log.url}/health/live")
    line = log.one(lambda: httpx.get(f"{log.url}/v1/models?key=secret"))

    assert line["path"] == "/v1/models"


@pytest.mark.parametrize("given_id", ["abc-123", "a" * 128, "b7ad6b7169203331/9:x.y_z"])
def test_the_callers_id_is_taken(log: Log, given_id: str) -> None:
    line = log.one(lambda: httpx.get(f"{log.url}/v1/models", headers={"x-request-id": given_id}))

    assert line["request_id"] == given_id


def test_a_proxy_on_this_machine_may_say_who_asks(log: Log) -> None:
    line = log.one(lambda: httpx.get(f"{log.url}/v1/models", headers={"x-forwarded-for": "203.0.113.7"}))

    assert line["client"] == "203.0.113.7"


HOSTILE = st.binary(min_size=1, max_size=300).filter(lambda b: not set(b) & set(b"\r\n\0") and b.strip(b" \t") == b)


@settings(max_examples=40)
@given(request_id=HOSTILE, agent=HOSTILE)
def test_no_header_can_forge_a_line(log: Log, request_id: bytes, agent: bytes) -> None:
    def ask() -> None:
        head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += b"X-Request-Id: %s\r\nUser-Agent: %s\r\n\r\n" % (request_id, agent)
        with socket.create_connection((urlsplit(log.url).hostname, urlsplit(log.url).port), timeout=DEADLINE) as peer:
            peer.sendall(head)
            answers.append(peer.makefile("rb").read())

    answers: list[bytes] = []
    before = len(log.lines())
    ask()
    status = answers[0].split()[1]
    if status == b"400":  # the parser takes no such bytes
        assert b"invalid_http" in answers[0]
        return
    wait_until(lambda: len(log.lines()) > before, "logging")
    [line] = log.lines()[before:]
    assert f"x-request-id: {line['request_id']}\r\n".encode() in answers[0]
    assert line["request_id"].isascii()
    assert line["request_id"].isprintable()


def test_paths_are_logged_as_they_were_sent(log: Log) -> None:
    line = log.one(lambda: httpx.get(f"{log.url}/v1/%0a%22%7d%e2%80%a8{'x' * 5000}"))

    assert line["path"].startswith("/v1/%0a%22%7d%e2%80%a8")
    assert len(line["path"]) == 1000


def test_bodies_are_logged_only_where_that_was_asked_for(
    executable: DecoderExecutable, demo_artifact: Artifact, tmp_path: Path
) -> None:
    with logging_server(executable, demo_artifact, tmp_path / "log", prompts=True) as log:
        line = log.one(lambda: httpx.post(f"{log.url}/v1/completions", json=ASKED, timeout=DEADLINE))

    assert json.loads(line["body"]) == ASKED


def test_a_log_that_was_moved_away_is_opened_again(
    executable: DecoderExecutable, demo_artifact: Artifact, tmp_path: Path
) -> None:
    with logging_server(executable, demo_artifact, tmp_path / "log", prompts=False) as log:
        log.one(lambda: httpx.get(f"{log.url}/v1/models"))
        os.rename(log.path, tmp_path / "log.1")
        httpx.get(f"{log.url}/v1/models")
        wait_until(log.path.exists, "opening the log again")
        wait_until(log.lines, "logging")

    assert (tmp_path / "log.1").read_text().count('"/v1/models"') == 1  # probes while it loaded may be there too


def test_a_full_disk_ends_no_request(executable: DecoderExecutable, demo_artifact: Artifact) -> None:
    front = Front(access_log=AccessLog("/dev/full"))
    with listening(create_app({NAME: Model(executable, demo_artifact)}, front=front)) as url:
        assert [httpx.get(f"{url}/v1/models").status_code for _ in range(2)] == [200, 200]


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        serve([(None, "nowhere.aicc")], access_log=tmp_path / "no" / "folder")


def test_without_a_file_the_log_is_on_stderr(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path) as server:
        httpx.get(f"{server.url}/v1/models")
        wait_until(lambda: server.said('"path": "/v1/models"'), "logging")
