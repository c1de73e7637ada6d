"""Who may use the server: keys, web pages of other origins, and addresses that others can reach."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import NAME, ServerProcess, listening

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Front, create_app, serve
from aicc.runtime.server.keys import ApiKeys

KEY, OTHER = "key-of-the-first-caller", "key-of-the-second-caller"
SHORT: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 1}
PAGE = "https://app.example"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# callers\n{KEY}\n\n  {OTHER}\t\r\n#{KEY}-no-more\n")
    return path


@pytest.fixture(scope="module")
def locked(executable: DecoderExecutable, demo_artifact: Artifact, key_file: Path) -> Iterator[str]:
    """A server that asks for keys, and lets pages of one origin ask."""
    front = Front(keys=ApiKeys.read(key_file), cors_origins=[PAGE])
    with listening(create_app({NAME: Model(executable, demo_artifact)}, front=front)) as url:
        yield url


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_every_key_of_the_file_is_taken(locked: str, key: str) -> None:
    with openai.OpenAI(base_url=f"{locked}/v1", api_key=key) as client:
        assert client.completions.create(**SHORT).choices
        assert [model.id for model in client.models.list()] == [NAME]


def test_a_wrong_key_is_what_the_official_client_calls_one(locked: str) -> None:
    with (
        openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.completions.create(**SHORT)

    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


WRONG: dict[str, list[bytes]] = {
    "none": [],
    "empty": [b""],
    "no scheme": [KEY.encode()],
    "another scheme": [b"Basic " + KEY.encode()],
    "no key": [b"Bearer"],
    "the start of one": [b"Bearer " + KEY[:-1].encode()],
    "one and more": [b"Bearer " + KEY.encode() + b"x"],
    "two": [b"Bearer " + KEY.encode() + b", " + OTHER.encode()],
    "a comment": [b"Bearer #" + KEY.encode() + b"-no-more"],
    "two headers": [b"Bearer " + KEY.encode(), b"Bearer wrong"],
    "no text": [b"Bearer \xff\xfe\x80"],
    "long": [b"Bearer " + b"x" * 10_000],
    "not its digest": [b"Bearer " + hashlib.sha256(KEY.encode()).hexdigest().encode()],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics")])
def test_without_a_right_key_there_is_nothing(locked: str, headers: list[bytes], method: str, path: str) -> None:
    answer = httpx.request(method, f"{locked}{path}", headers=[(b"authorization", value) for value in headers])

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models?health/live",
        "/health/live/../../v1/models",
        "//health/live",
        "/health/live/",
        "/health/live;v1/models",
        "/health%2flive/x",
        "/HEALTH/live",
        "http://localhost/v1/models",
        "/nowhere",
        "/page/../v1/models",
        "/page/%2e%2e/app.py",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(locked: str, target: str) -> None:
    host, port = locked.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        status = connection.makefile("rb").read().split(b"\r\n")[0]

    assert status.split()[1] in (b"401", b"400")


def test_health_needs_no_key(locked: str) -> None:
    assert httpx.get(f"{locked}/health/live").status_code == 200
    assert httpx.get(f"{locked}/health/ready").json()["status"] == "ready"


def test_pages_of_a_named_origin_may_ask_and_others_may_not(locked: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    allowed = httpx.options(f"{locked}/v1/completions", headers={"origin": PAGE, **asks})
    refused = httpx.options(f"{locked}/v1/completions", headers={"origin": "https://other.example", **asks})
    answer = httpx.post(
        f"{locked}/v1/completions",
        json=SHORT,
        headers={"origin": PAGE, "authorization": f"Bearer {KEY}"},
        timeout=60,
    )

    assert allowed.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-origin" not in refused.headers
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_without_named_origins_no_page_may_ask(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models", headers={"origin": PAGE})

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example", "https://app.example/", "https://App.example", "ftp://a", "https://a:x", ""]
)
def test_an_origin_that_is_none_is_refused_before_anything_is_loaded(origin: str) -> None:
    with pytest.raises(UsageError, match="is no origin"):
        serve([(None, "nowhere.aicc")], cors_origins=[origin])


KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).filter(lambda k: not k.startswith("#"))


@given(keys=st.lists(KEYS, min_size=1), other=KEYS)
def test_exactly_the_keys_of_the_file_are_keys(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], other: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-keys"
    path.write_text("\n# comment\n".join(keys))
    read = ApiKeys.read(path)

    assert all(key.encode() in read for key in keys)
    assert (other.encode() in read) == (other in keys)
    assert not any(key in repr(vars(read)) for key in keys if len(key) > 8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no keys"),
        (b"# only\n\n  \n", "has no keys"),
        (b"good\nnot good\n", "line 2"),
        (b"\xff\xfe\n", "line 1"),
        (b"\0" * 10, "line 1"),
        (b"x" * (2 << 20), "larger"),
    ],
    ids=["empty", "comments", "a space", "not ASCII", "zeros", "endless"],
)
def test_a_key_file_that_holds_no_keys_is_refused_before_anything_is_loaded(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=why) as caught:
        serve([(None, "nowhere.aicc")], api_key_file=path)

    assert str(path) in caught.value.message
    assert "good" not in caught.value.message


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_key_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        serve([(None, "nowhere.aicc")], api_key_file=tmp_path / name)


def test_with_keys_it_listens_anywhere_and_says_that_they_cross_in_the_clear(
    demo_artifact: Artifact, key_file: Path
) -> None:
    with ServerProcess(demo_artifact.path, host="0.0.0.0", api_key_file=str(key_file)) as server:
        assert server.said("in the clear")
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        elsewhere = {"host": "models.example"}
        assert httpx.get(f"{url}/v1/models", headers=elsewhere).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=elsewhere | {"authorization": f"bearer {KEY}"}).status_code == 200
