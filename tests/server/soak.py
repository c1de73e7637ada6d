"""Half an hour of a server under load and abuse, watching memory and pages: `python -m tests.server.soak [seconds]`.

Callers ask for all kinds of things, more than there are pages for, and others get in their way: clients that hang
up at a random moment, hostile bodies and paths, steps that fail. Every error must be a well-formed one, and each
request that was accepted answered. In the end all pages must be free and memory must not have grown since the load
began. Then the server is told to stop while it is busy, and what it has accepted must still be answered; and
another one has its engine killed, and must tell everybody, free all pages and say that it is out of service.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.server.devices import BREAK, KILL
from tests.server.live_server import NAME, ServerProcess, health, wait_idle, wait_until

ARTIFACT = Path("build/smollm2-135m.aicc")
SECONDS = 1800
CALLERS = 12
DESERTERS = 2000  # clients that hang up, over the whole run
BREAK_SECONDS = 12  # between steps that fail; three in a row would be the end
KV_TOKENS = 1024  # a tenth of what all callers may ask for at once
WARM_SECONDS = 60
GROWTH_BYTES = 64 << 20  # what allocators may keep to themselves
WORDS = ["the", "a", "cat", "dog", "sat", "on", "under", "mat", "moon", "and", "then", "but", "river", "is", "was"]
STATUSES = {"queue_full": 429, "internal_error": 500, "model_unavailable": 503, "shutting_down": 503}


def body(choices: random.Random) -> dict[str, Any]:
    """A request of a random kind."""
    return {
        "model": NAME,
        "prompt": " ".join(choices.choices(WORDS, k=choices.choice([3, 30, 300]))),
        "max_tokens": choices.choice([1, 20, 60, 200]),
        "n": choices.choice([1, 1, 2]),
        "stream": choices.random() < 0.7,
    }


async def call(http: httpx.AsyncClient, asked: dict[str, Any]) -> str:
    """Ask and read the whole answer: `answered` in full, `sent away`, `failed`, or that the server is `dead`."""
    async with http.stream("POST", "/v1/completions", json=asked) as answer:
        text = (await answer.aread()).decode()
    error = ""
    if answer.status_code != 200:
        error = text
    elif not asked["stream"]:
        assert len(json.loads(text)["choices"]) == asked["n"]
    elif not text.endswith("data: [DONE]\n\n"):
        error = text.rstrip().rpartition("\n")[2].removeprefix("data: ")
    if not error:
        return "answered"
    code = json.loads(error)["error"]["code"]
    assert json.loads(error)["error"]["message"]
    assert answer.status_code == 200 or STATUSES[code] == answer.status_code, text
    return {"internal_error": "failed", "model_unavailable": "dead"}.get(code, "sent away")


async def desert(url: str, choices: random.Random) -> None:
    """Send a request, or a part of it, read a random part of the answer and hang up, properly or not."""
    address = urlsplit(url)
    data = json.dumps(body(choices) | {"stream": True, "max_tokens": 60}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    is_whole = choices.random() < 0.8
    writer.write(request if is_whole else request[: choices.randrange(len(request))])
    if is_whole:
        with suppress(asyncio.IncompleteReadError, TimeoutError):
            await asyncio.wait_for(reader.readexactly(choices.choice([0, 1, 100, 1000, 5000])), choices.random() * 5)
    if choices.random() < 0.5:
        writer.transport.abort()
    writer.close()


def hostile() -> list[tuple[str, str, bytes]]:
    """Requests that no server should trust: method, path and body."""
    path, prompt = "/v1/completions", {"model": NAME, "prompt": "a"}
    chat = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}

    def schema(schema: object) -> bytes:
        form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
        return json.dumps(chat | {"response_format": form}).encode()

    regex = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "(((a{1,999}){1,999}){1,999}){1,999}"}},
    }
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    return [
        ("POST", path, b"[" * 200_000),
        ("POST", path, b'{"a":' * 100_000),
        ("POST", path, json.dumps(prompt | {"n": 10**9}).encode()),
        ("POST", path, json.dumps(prompt | {"n": 10**400}).encode()),
        ("POST", path, json.dumps(prompt | {"max_tokens": -1}).encode()),
        ("POST", path, json.dumps(prompt | {"prompt": [[2**40]]}).encode()),
        ("POST", path, json.dumps(prompt | {"stop": ["x"] * 10_000}).encode()),
        ("POST", path, b'{"model": "' + NAME.encode() + b'", "prompt": "\xff\xfe\xc0"}'),
        ("POST", path, b'{"model": "' + NAME.encode() + b'", "prompt": "\\ud800"}'),
        ("POST", path, b"\x00" * 1000),
        ("POST", path, b"x" * (8 << 20)),
        ("POST", "/v1/chat/completions", schema(regex)),
        ("POST", "/v1/chat/completions", schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
        ("POST", "/v1/chat/completions", schema({"$ref": "http://127.0.0.1:9/schema.json"})),
        ("POST", "/v1/chat/completions", schema(deep)),
        ("GET", "/v1/models/..%2f..%2f..%2fetc%2fpasswd", b""),
        ("GET", "/../../../../etc/passwd", b""),
        ("GET", "/static/..%5c..%5cetc", b""),
        ("DELETE", path, b""),
    ]


async def abuse(http: httpx.AsyncClient, request: tuple[str, str, bytes]) -> None:
    """Send what must be refused, and look at how it is; a schema may be followed instead, unless a step fails."""
    method, path, content = request
    answer = await http.request(method, path, content=content, headers={"content-type": "application/json"})
    said = (method, path, content[-200:], answer.status_code, answer.text[:300])
    if answer.status_code == 200:
        assert b"json_schema" in content, said
        return
    error = answer.json()["error"]
    assert error["message"], said
    if error["code"] == "internal_error":
        assert b"json_schema" in content, said
        assert answer.status_code == 500, said
    else:
        assert 400 <= answer.status_code < 500, said


async def load(server: ServerProcess, seconds: float, share: float, seed: int) -> Counter[str]:
    """Keep everybody busy; how often each kind of client came.

    Args:
        server: Whose devices obey signals.
        seconds: How long.
        share: Of those who hang up over the whole run.
        seed: Of all that is random.
    """
    end, came = time.monotonic() + seconds, Counter[str]()

    async def caller(number: int) -> None:
        choices = random.Random(seed * CALLERS + number)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            while time.monotonic() < end:
                came[await call(http, body(choices))] += 1

    async def abuser() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            while time.monotonic() < end:
                for request in hostile():
                    await abuse(http, request)
                    came["hostile"] += 1
                await asyncio.sleep(min(10, seconds / 10))

    async def deserter() -> None:
        choices, deserters = random.Random(seed), int(DESERTERS * share)
        async with asyncio.TaskGroup() as group:
            for _ in range(deserters):
                group.create_task(desert(server.url, choices))
                came["hung up"] += 1
                await asyncio.sleep(choices.random() * 2 * seconds / deserters)

    async def breaker() -> None:
        for _ in range(int(seconds / BREAK_SECONDS)):
            await asyncio.sleep(BREAK_SECONDS)
            os.kill(server.process.pid, BREAK)
            came["broken"] += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)), abuser(), deserter(), breaker())
    assert not came["dead"]
    return came


async def end_while_busy(server: ServerProcess, sent: int) -> Counter[str]:
    """Send a signal among requests, and go on until everybody has been told; what came of their requests."""
    came: Counter[str] = Counter()
    ending = asyncio.Event()

    async def caller(number: int) -> None:
        choices = random.Random(number)
        while True:
            async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
                try:
                    outcome = await call(http, body(choices))
                except httpx.ConnectError:
                    assert ending.is_set()
                    assert sent == signal.SIGTERM
                    return
            came[outcome] += 1
            if outcome != "answered" and ending.is_set():
                return

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    while came["answered"] < 2 * CALLERS:
        await asyncio.sleep(0.1)
    ending.set()
    os.kill(server.process.pid, sent)
    await asyncio.gather(*callers)
    return came


def figure(url: str, name: str) -> float:
    """A figure of the one model."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}{{")).split()[-1])


def loaded(seconds: float) -> None:
    """A server under load, which is then told to stop."""
    with ServerProcess(ARTIFACT, devices=True, access_log=os.devnull, kv_tokens=KV_TOKENS) as server:
        server.wait_ready()
        process = psutil.Process(server.process.pid)
        warm = min(WARM_SECONDS, seconds / 3)
        asyncio.run(load(server, warm, warm / seconds, seed=0))
        wait_idle(server.url)
        before = process.memory_info().rss
        came = asyncio.run(load(server, seconds - warm, 1, seed=1))
        wait_idle(server.url)
        growth, preemptions = process.memory_info().rss - before, figure(server.url, "aicc_preemptions_total")
        print(
            f"{dict(came)} in {seconds - warm:.0f} s, {preemptions:.0f} preemptions; "
            f"memory grew by {growth / 2**20:.1f} MiB; all pages are free",
            flush=True,
        )
        assert growth < GROWTH_BYTES, "the server leaks memory"
        assert preemptions, "pages never ran out"
        assert 0 < came["failed"] <= came["broken"] * 2 * CALLERS
        came = asyncio.run(end_while_busy(server, signal.SIGTERM))
        assert server.end() == 0
        assert not came["failed"] + came["dead"]
        print(f"stopped while busy: {dict(came)}; nothing accepted was lost", flush=True)


def killed() -> None:
    """A server that loses its engine while it is busy: everybody is told, and so is who asks for its health."""
    with ServerProcess(ARTIFACT, devices=True, access_log=os.devnull, kv_tokens=KV_TOKENS) as server:
        server.wait_ready()
        came = asyncio.run(end_while_busy(server, KILL))
        wait_until(lambda: server.said("has failed"), "saying so")
        assert health(server.url)["status"] == "failed"
        assert httpx.get(f"{server.url}/health/ready").status_code == 503
        wait_idle(server.url)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.end() == 0
        print(f"killed while busy: {dict(came)}; all pages are free")


def main() -> None:
    loaded(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)
    killed()


if __name__ == "__main__":
    main()
