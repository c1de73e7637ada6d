"""Connections that stand still, speak no HTTP, or speak it over TLS."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import DEADLINE, NAME, ServerProcess, health, listening, wait_idle, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Limits, create_app, serve

ENDLESS: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 8000, "ignore_eos": True}


@contextmanager
def peer(url: str, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    connection = socket.socket()
    connection.settimeout(DEADLINE)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with connection:
        connection.connect((urlsplit(url).hostname, urlsplit(url).port))
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes; a reset closes too."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


@pytest.fixture(scope="module")
def impatient(executable: DecoderExecutable, demo_artifact: Artifact) -> Iterator[str]:
    """A server that waits for nobody, and gives no answer longer than a second."""
    app = create_app({NAME: Model(executable, demo_artifact)}, Limits(request_seconds=1.0))
    with listening(app, idle_seconds=0.3) as url:
        yield url


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_connection_that_asks_nothing_is_closed(impatient: str, sent: bytes) -> None:
    with peer(impatient) as connection:
        connection.sendall(sent)

        assert read_all(connection) == b""


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /health/live HTTP/1.1\r\nX-Slow: ",
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",  # answered, and goes on
    ],
    ids=["headers", "a body after its answer"],
)
def test_what_trickles_does_not_put_the_end_off(impatient: str, begun: bytes) -> None:
    with peer(impatient) as connection:
        connection.sendall(begun)
        connection.settimeout(0.01)
        for _ in range(1000):  # far longer than the server waits
            try:
                connection.sendall(b"x")
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            pytest.fail("the connection stayed open")


def test_an_answer_in_time_leaves_the_connection_open_for_the_next(impatient: str) -> None:
    connection = HTTPConnection(urlsplit(impatient).netloc, timeout=DEADLINE)
    connection.connect()
    with closing(connection):
        first = connection.sock
        for _ in range(3):
            connection.request("GET", "/health/live")
            assert connection.getresponse().read()
            assert connection.sock is first


def test_who_does_not_read_the_answer_is_dropped_and_its_memory_freed(
    executable: DecoderExecutable, demo_artifact: Artifact
) -> None:
    app = create_app({NAME: Model(executable, demo_artifact)})
    body = httpx.Request("POST", "http://x", json=ENDLESS | {"stream": True, "n": 8}).content
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with listening(app, idle_seconds=0.3, send_buffer=4096) as url, peer(url, receive_buffer=4096) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: health(url)["sequences"] == 8, "starting")
        wait_idle(url)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended_with_an_error(impatient: str, stream: bool) -> None:
    answer = httpx.post(f"{impatient}/v1/completions", json=ENDLESS | {"stream": stream}, timeout=DEADLINE)

    assert answer.status_code == (200 if stream else 504)
    assert '"code":"request_timeout"' in answer.text.splitlines()[-2 if stream else -1]
    wait_idle(impatient)


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=400))
def test_bytes_that_are_no_http_are_answered_like_any_mistake(impatient: str, nonsense: bytes) -> None:
    with peer(impatient) as connection:
        connection.sendall(nonsense + b"\r\n\r\n")
        answer = read_all(connection)

    if answer:  # else it may have been the beginning of a request
        assert answer.split()[1] in (b"400", b"404", b"405")
        assert b'{"error":{"message":' in answer
    assert httpx.get(f"{impatient}/health/live").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n",
        b"GET /v1/models HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 1_000_000 + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100_000,
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nA\0: b\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ],
    ids=["two hosts", "no host", "endless", "many", "negative length", "two lengths", "encoding", "zero", "chunks too"],
)
def test_headers_no_server_should_take_are_a_400(impatient: str, head: bytes) -> None:
    with peer(impatient) as connection:
        try:
            connection.sendall(head + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            return  # it had enough of them before their end
        answer = read_all(connection)

    assert not answer or answer.split()[1] in (b"400", b"501")


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"-1\r\n{}\r\n", b"f" * 30 + b"\r\n", b"2\r\n{}{}\r\n0\r\n\r\n"],
    ids=["size", "sign", "huge", "end"],
)
def test_a_chunked_body_that_is_none_is_a_400_and_takes_no_room(url: str, body: bytes) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with peer(url) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"code":"invalid_http"' in answer


def test_large_bodies_have_room_together_and_small_ones_always(
    executable: DecoderExecutable, demo_artifact: Artifact
) -> None:
    most = 128 << 10
    ask: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 1}
    large = ask | {"user": "u" * (most - 200)}
    begun = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    begun += f"Content-Length: {most}\r\n\r\n{' ' * (most - 1)}"
    app = create_app({NAME: Model(executable, demo_artifact)}, Limits(body_bytes=most))
    with listening(app) as url:

        def post(body: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE)

        with ExitStack() as callers:
            for _ in range(70):  # each of these bodies lacks its end
                callers.enter_context(peer(url)).sendall(begun.encode())
            wait_until(lambda: post(large).status_code == 429, "being full")
            refused, taken = post(large), post(ask)
        wait_until(lambda: post(large).status_code == 200, "having room again")

    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert taken.status_code == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/v1/models", "localhost", 200),
        (
            "HTTPS://127.0.0.1:8000/v1/models?limit=1",
            "elsewhere.example",
            200,
        ),  # the first counts
        ("http://elsewhere.example/v1/models", "localhost", 400),
        ("http://localhost", "localhost", 200),
        ("http://localhost?a=b", "localhost", 200),
        ("http://somebody@localhost/v1/models", "localhost", 404),
        ("ftp://localhost/v1/models", "localhost", 404),
    ],
)
def test_a_target_may_be_a_whole_address(impatient: str, target: str, host: str, status: int) -> None:
    with peer(impatient) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())

        assert read_all(connection).split()[1] == b"%d" % status


def test_nonsense_behind_a_request_does_not_hurt_its_answer(impatient: str) -> None:
    with peer(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n\x00\xff nonsense\r\n\r\n")
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Internal Server Error" not in answer


AUTHORITY = trustme.CA()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Certificates and keys, right and wrong, by what they are."""
    folder = tmp_path_factory.mktemp("tls")
    one, other = AUTHORITY.issue_cert("127.0.0.1"), AUTHORITY.issue_cert("127.0.0.1")
    secret = load_pem_private_key(one.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    contents = {
        "certificate": b"".join(blob.bytes() for blob in one.cert_chain_pems),
        "key": one.private_key_pem.bytes(),
        "another key": other.private_key_pem.bytes(),
        "a key with a passphrase": secret,
        "nonsense": b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
        "nothing": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "missing"]}


BAD = [
    ("certificate", None, "needs a certificate and its key"),
    (None, "key", "needs a certificate and its key"),
    ("missing", "key", "missing cannot be read"),
    ("certificate", "missing", "missing cannot be read"),
    ("certificate", "another key", "is not the key of"),
    ("certificate", "a key with a passphrase", "has a passphrase"),
    ("certificate", "nonsense", "no TLS certificate and key"),
    ("nonsense", "key", "no TLS certificate and key"),
    ("nothing", "nothing", "no TLS certificate and key"),
    ("key", "certificate", "no TLS certificate and key"),
]


@pytest.mark.parametrize(("certificate", "key", "why"), BAD)
def test_tls_files_that_cannot_be_used_are_refused_before_anything_is_loaded(
    pem: dict[str, Path], certificate: str | None, key: str | None, why: str
) -> None:
    files = {"tls_certificate": pem[certificate] if certificate else None, "tls_key": pem[key] if key else None}

    with pytest.raises(UsageError, match=why):
        serve([(None, "nowhere.aicc")], **files)


def test_with_a_certificate_it_speaks_https_and_outlives_those_who_do_not(
    demo_artifact: Artifact, pem: dict[str, Path]
) -> None:
    trust = ssl.create_default_context()
    AUTHORITY.configure_trust(trust)
    files = {"tls_certificate": str(pem["certificate"]), "tls_key": str(pem["key"])}
    with ServerProcess(demo_artifact.path, **files) as server:
        assert server.url.startswith("https://127.0.0.1:")
        for nonsense in (b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 99):
            with peer(server.url) as connection:
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                assert b"HTTP/1.1 200" not in read_all(connection)
        with ExitStack() as callers:
            for number in range(100):  # handshakes that do not go on
                callers.enter_context(peer(server.url)).sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
            assert httpx.get(f"{server.url}/health/live", verify=trust).status_code == 200
        assert not server.said("Traceback")
