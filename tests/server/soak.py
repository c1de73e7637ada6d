"""Half an hour of a server under load and abuse, watching memory and pages: `python -m tests.server.soak [seconds]`.

Callers ask for all kinds of things, and others get in their way: clients that hang up at a random
moment, hostile bodies and paths. Every error must be a well-formed one, and each request that was
accepted answered. In the end all pages must be free and memory must not have grown since the load began;
then the server is told to stop while it is busy, and what it has accepted must still be answered.
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

from tests.server.live_server import NAME, ServerProcess, wait_idle

SECONDS = 1800
CALLERS = 12
DESERTERS = 2000  # clients that hang up, over the whole run
WARM_SECONDS = 60
GROWTH_BYTES = 64 << 20  # what allocators may keep to themselves
WORDS = ["the", "a", "cat", "dog", "sat", "on", "under", "mat", "moon", "and", "then", "but", "river", "is", "was"]
BUSY = (429, 503)


def body(choices: random.Random) -> dict[str, Any]:
    """A request of a random kind."""
    return {
        "model": NAME,
        "prompt": " ".join(choices.choices(WORDS, k=choices.choice([3, 30, 300]))),
        "max_tokens": choices.choice([1, 20, 60]),
        "n": choices.choice([1, 1, 2]),
        "stream": choices.random() < 0.7,
    }


async def call(http: httpx.AsyncClient, asked: dict[str, Any]) -> int:
    """Ask and read the whole answer, which must be complete; its status."""
    async with http.stream("POST", "/v1/completions", json=asked) as answer:
        text = (await answer.aread()).decode()
    if answer.status_code != 200:
        assert answer.status_code in BUSY, text
        assert json.loads(text)["error"]["message"]
    elif asked["stream"]:
        assert text.endswith("data: [DONE]\n\n"), text[-300:]
        assert '"error"' not in text, text[-300:]
    else:
        assert len(json.loads(text)["choices"]) == asked["n"]
    return answer.status_code


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
    """Send what must be refused, and look at how it is; a schema may be followed instead, where it can be."""
    method, path, content = request
    answer = await http.request(method, path, content=content, headers={"content-type": "application/json"})
    said = (method, path, content[-200:], answer.status_code, answer.text[:300])
    if answer.status_code == 200:
        assert b"json_schema" in content, said
    else:
        assert 400 <= answer.status_code < 500, said
        assert answer.json()["error"]["message"], said


async def load(url: str, seconds: float, deserters: int, seed: int) -> Counter[str]:
    """Keep everybody busy; how often each kind of client came."""
    end, came = time.monotonic() + seconds, Counter[str]()

    async def caller(number: int) -> None:
        choices = random.Random(seed * CALLERS + number)
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            while time.monotonic() < end:
                status = await call(http, body(choices))
                came["answered" if status == 200 else "sent away"] += 1

    async def abuser() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            while time.monotonic() < end:
                for request in hostile():
                    await abuse(http, request)
                    came["hostile"] += 1
                await asyncio.sleep(min(10, seconds / 10))

    async def deserter() -> None:
        choices = random.Random(seed)
        async with asyncio.TaskGroup() as group:
            for _ in range(deserters):
                group.create_task(desert(url, choices))
                came["hung up"] += 1
                await asyncio.sleep(choices.random() * 2 * seconds / deserters)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)), abuser(), deserter())
    return came


async def stop_while_busy(server: ServerProcess) -> Counter[str]:
    """Send SIGTERM among requests; what came of them. Whatever was accepted is answered in full, others are told."""
    came: Counter[str] = Counter()
    stopping = asyncio.Event()

    async def caller(number: int) -> None:
        choices = random.Random(number)
        while True:
            async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
                try:
                    status = await call(http, body(choices))
                except httpx.ConnectError:
                    assert stopping.is_set()
                    return
            came["answered" if status == 200 else "sent away"] += 1
            if status != 200 and stopping.is_set():
                return

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    while came["answered"] < 2 * CALLERS:
        await asyncio.sleep(0.1)
    stopping.set()
    os.kill(server.process.pid, signal.SIGTERM)
    await asyncio.gather(*callers)
    return came


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with ServerProcess(Path("build/smollm2-135m.aicc"), access_log=os.devnull) as server:
        server.wait_ready()
        process = psutil.Process(server.process.pid)
        warm = min(WARM_SECONDS, seconds / 3)
        asyncio.run(load(server.url, warm, int(DESERTERS * warm / seconds), seed=0))
        wait_idle(server.url)
        before = process.memory_info().rss
        came = asyncio.run(load(server.url, seconds - warm, DESERTERS, seed=1))
        wait_idle(server.url)
        growth = process.memory_info().rss - before
        print(
            f"{dict(came)} in {seconds - warm:.0f} s; memory grew by {growth / 2**20:.1f} MiB; all pages are free",
            flush=True,
        )
        assert growth < GROWTH_BYTES, "the server leaks memory"
        came = asyncio.run(stop_while_busy(server))
        assert server.end() == 0
        assert not server.said("Traceback")
        print(f"stopped while busy: {dict(came)}; nothing accepted was lost")


if __name__ == "__main__":
    main()
