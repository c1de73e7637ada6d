"""The load on a server: streamed completions over plain sockets, in a closed or an open loop.

While answers come in, a client only notes when bytes arrived; what was in them is read afterwards, so
that on a machine shared with the server it takes as little of the processor as it can.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import selectors
import socket
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

MODEL = "model"  # what requests call it
_EVENT = re.compile(rb"^data: (\{.*\})\r?$", re.MULTILINE)
_BUSY = 429
_PIECE_BYTES = 1 << 16
Pieces = Sequence[tuple[float, bytes]]  # what came of an answer, and when


class LoadError(Exception):
    """A server did not answer as it should; the message has what it said."""


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, in seconds of ``time.perf_counter()``.

    Attributes:
        asked: When it was sent; in an open loop, when it was due.
        stamps: When each event that brought text arrived.
        tokens: Generated; more than events where one brought several, or none of their text.
    """

    asked: float
    stamps: Sequence[float]
    tokens: int


@dataclass
class Load:
    """What came of a load.

    Attributes:
        begin: When the first request was sent.
        end: When no more were to be sent; those under way could finish.
        exchanges: All that were answered.
        refused: Requests answered 429.
        client_seconds: Of processor time that sending and receiving took, until ``end``.
    """

    begin: float
    end: float
    exchanges: list[Exchange]
    refused: int = 0
    client_seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Tokens a second between begin and end, percentiles in seconds, and what the clients cost."""
        firsts = [exchange.stamps[0] - exchange.asked for exchange in self.exchanges]
        gaps = [later - earlier for e in self.exchanges for earlier, later in pairwise(e.stamps)]
        tokens = sum(e.tokens * bisect_right(e.stamps, self.end) / len(e.stamps) for e in self.exchanges)
        seconds = self.end - self.begin
        return {
            "tokens_per_s": tokens / seconds,
            "first_p50_s": percentile(firsts, 50),
            "first_p99_s": percentile(firsts, 99),
            "gap_p50_s": percentile(gaps, 50),
            "gap_p99_s": percentile(gaps, 99),
            "requests": len(self.exchanges),
            "refused": self.refused,
            "client_processors": self.client_seconds / seconds,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


class _Connection(asyncio.Protocol):
    """Sends one request and keeps what arrives, and when, until the server closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[float, bytes]] = []
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


class Client:
    """Asks one server for streamed completions, greedy and of a fixed length.

    Args:
        port: Of the server, on this machine.
        tokens: To generate for each request.
    """

    def __init__(self, port: int, tokens: int) -> None:
        self.port = port
        self._tokens = tokens

    def request(self, ids: Sequence[int]) -> bytes:
        """What asks for the answer to a prompt."""
        body = {
            "model": MODEL,
            "prompt": ids,
            "max_tokens": self._tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + data

    async def ask(self, ids: Sequence[int], asked: float | None = None) -> tuple[float, Pieces]:
        """Send a prompt and wait for the end of its answer; :meth:`read` reads it."""
        request, loop = self.request(ids), asyncio.get_running_loop()
        asked = time.perf_counter() if asked is None else asked
        _, connection = await loop.create_connection(lambda: _Connection(request), "127.0.0.1", self.port)
        await connection.closed
        return asked, connection.pieces

    def read(self, asked: float, pieces: Pieces) -> Exchange | None:
        """The exchange; None if the server was too busy.

        Raises:
            LoadError: The answer is an error, is cut off or has another number of tokens.
        """
        times = [time for time, _ in pieces]
        ends = list(accumulate(len(data) for _, data in pieces))
        answer = b"".join(data for _, data in pieces)
        status = answer[:12].partition(b" ")[2]
        if status == b"%d" % _BUSY:
            return None
        stamps, tokens = [], 0
        for match in _EVENT.finditer(answer):
            event = json.loads(match[1])
            if any(choice.get("text") for choice in event.get("choices", ())):
                stamps.append(times[bisect_left(ends, match.end())])  # the piece that completed it
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if status != b"200" or tokens != self._tokens or not stamps:
            raise LoadError(f"{tokens} tokens came, not {self._tokens}: {answer[:300]!r} … {answer[-300:]!r}")
        return Exchange(asked, stamps, tokens)


def _read_all(client: Client, begin: float, end: float, clock: float, answers: Sequence[Any]) -> Load:
    exchanges = [client.read(*answer) for answer in answers]
    answered = [exchange for exchange in exchanges if exchange is not None]
    return Load(begin, end, answered, len(exchanges) - len(answered), clock)


def closed_loop(client: Client, prompts: Iterator[Sequence[int]], users: int, seconds: float) -> Load:
    """So many users, each of whom asks again as soon as the answer is complete; nobody asks after ``seconds``."""

    async def user(until: float, answers: list[Any]) -> None:
        while time.perf_counter() < until:
            answers.append(await client.ask(next(prompts)))

    async def run() -> Load:
        answers: list[Any] = []
        clock, begin = time.process_time(), time.perf_counter()
        asking = [asyncio.create_task(user(begin + seconds, answers)) for _ in range(users)]
        await asyncio.sleep(seconds)
        clock, end = time.process_time() - clock, time.perf_counter()
        await asyncio.gather(*asking)
        return _read_all(client, begin, end, clock, answers)

    load = asyncio.run(run())
    if load.refused:
        raise LoadError(f"{load.refused} requests were refused, though no more than {users} were open")
    return load


def together(client: Client, prompts: Sequence[Sequence[int]]) -> Load:
    """All prompts at once, until the last answer is complete; with less of the processor than asyncio takes."""
    answers: list[tuple[float, list[tuple[float, bytes]]]] = []
    clock, begin = time.process_time(), time.perf_counter()
    with selectors.DefaultSelector() as waiting:
        for ids in prompts:
            answers.append((time.perf_counter(), []))
            connection = socket.create_connection(("127.0.0.1", client.port))
            connection.sendall(client.request(ids))
            waiting.register(connection, selectors.EVENT_READ, answers[-1][1])
        while waiting.get_map():
            for key, _ in waiting.select():
                assert isinstance(key.fileobj, socket.socket)
                if data := key.fileobj.recv(_PIECE_BYTES):
                    key.data.append((time.perf_counter(), data))
                else:
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()
    clock, end = time.process_time() - clock, time.perf_counter()
    return _read_all(client, begin, end, clock, answers)


def open_loop(client: Client, prompts: Iterator[Sequence[int]], rate: float, seconds: float, seed: int) -> Load:
    """Requests at random times, ``rate`` a second on average, however long the answers take."""

    async def run() -> Load:
        choices, asking = random.Random(seed), []
        clock, begin = time.process_time(), time.perf_counter()
        due = begin + choices.expovariate(rate)
        while due < begin + seconds or not asking:
            await asyncio.sleep(due - time.perf_counter())
            asking.append(asyncio.create_task(client.ask(next(prompts), due)))
            due += choices.expovariate(rate)
        await asyncio.sleep(begin + seconds - time.perf_counter())
        clock, end = time.process_time() - clock, time.perf_counter()
        return _read_all(client, begin, end, clock, await asyncio.gather(*asking))

    return asyncio.run(run())


def prefix_seconds(client: Client, prefix: Sequence[int], questions: Sequence[Sequence[int]]) -> list[float]:
    """Time to the first token of each question after the same prefix, one after the other."""

    async def run() -> list[Any]:
        return [await client.ask([*prefix, *question]) for question in questions]

    exchanges = [client.read(*answer) for answer in asyncio.run(run())]
    return [exchange.stamps[0] - exchange.asked for exchange in exchanges if exchange is not None]
