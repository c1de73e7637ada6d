"""A server that really listens: in this process over an app, or a process of its own."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from aicc.runtime.server.connections import Connection

DEADLINE = 60.0  # seconds until a condition that should hold soon counts as never
NAME = "smollm2"


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        threading.Event().wait(0.005)


@contextmanager
def listening(
    app: Starlette, until: str = "ready", idle_seconds: float = 30, send_buffer: int | None = None
) -> Iterator[str]:
    """Serve an app on a free port of this machine; gives its address once it has this status."""
    sock = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_level="critical",
        timeout_keep_alive=idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "listening")
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        wait_until(lambda: httpx.get(f"{url}/health/ready", timeout=DEADLINE).json()["status"] == until, until)
        yield url
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the server did not stop"


class ServerProcess:
    """`serve` in a process of its own, reading what it says on stderr.

    Args:
        artifact: Of its one model.
        devices: Whether the model runs on devices that fail at signals (`devices.py`).
        options: Of `serve`.
    """

    def __init__(self, artifact: Path, devices: bool = False, **options: object) -> None:
        code = "import json, sys; from aicc.runtime.server import serve; serve(**json.loads(sys.argv[1]))"
        if devices:
            here = str(Path(__file__).parent)
            code = f"import sys; sys.path.insert(0, {here!r}); import devices; devices.obey_signals(); {code}"
        arguments = {"artifacts": [(NAME, str(artifact))], "port": 0, **options}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments), Path(__file__).parent],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.said(" at http") or self.process.poll() is not None, "listening")
        self.url = next((line.split(" at ")[1].split("/v1")[0] for line in self.lines if " at http" in line), "")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def wait_ready(self) -> None:
        wait_until(lambda: self.said("is ready on"), "loading")

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(DEADLINE)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def health(url: str) -> dict[str, Any]:
    """The status of a server of one model, and what it says of the model."""
    answer = httpx.get(f"{url}/health/ready", timeout=DEADLINE).json()
    [model] = answer["models"]
    return {**model, "status": answer["status"]}


def wait_idle(url: str) -> None:
    """Until no sequence is left and every page is free."""

    def idle() -> bool:
        now = health(url)
        return now["sequences"] == 0 and now["kv_pages_free"] == now["kv_pages"]

    wait_until(idle, "freeing all pages")
