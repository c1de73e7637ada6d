"""``aicc serve``: the listening socket, signals, and the end."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.server.app import Limits, build_app
from aicc.runtime.server.hosts import LOOPBACK
from aicc.runtime.server.model_thread import ModelThread
from aicc.runtime.server.registry import Decoder, Registry, Tensors, served

_BACKLOG = 128  # connections the system keeps until they are accepted


def serve(
    artifacts: Sequence[tuple[str | None, str | os.PathLike[str]]],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    device: str | None = None,
    threads: int | None = None,
    kv_tokens: int | None = None,
    insecure: bool = False,
    drain_seconds: int = 30,
    limits: Limits | None = None,
    announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Serve artifacts until SIGTERM or Ctrl-C.

    It listens before the models are loaded, so that ``/health/ready`` can tell. The first signal
    stops accepting and lets what is running finish; the second ends the process at once.

    Args:
        artifacts: ``.aicc`` directories, each after what requests call the model; None is the
            artifact's own name. They are loaded at the same time, each on a thread of its own.
        host: Address to listen on.
        port: 0 takes any that is free.
        device: As :func:`aicc.runtime.load`, and so are ``threads`` and ``kv_tokens``; for every artifact.
        threads: Threads to compute with.
        kv_tokens: Tokens the KV cache holds over all sequences.
        insecure: Listen on an address that other machines can reach, and answer to any name in Host headers.
        drain_seconds: Longest to wait for what is running at the end.
        limits: What to take on.
        announce: Told one line when listening, when a model is ready and when stopping.

    Raises:
        UsageError: The address may not or cannot be listened on; two models have one name.
        AiccError: A model cannot be loaded.
    """
    limits = limits or Limits()

    def changed(name: str, thread: ModelThread[Any]) -> None:
        if thread.model is None:
            server.should_exit = True  # never loaded: the reason is raised below
        elif thread.error is not None:
            announce(f"{name} has failed: {thread.error}; restart the server")
        else:
            if reason := thread.model.compatibility.reason:
                announce(f"note: {reason}")
            announce(f"{name} is ready on {thread.model.device}")

    def model_of(name: str | None, path: str | os.PathLike[str]) -> Decoder | Tensors:
        manifest = Artifact.open(path).manifest
        name = name or manifest.name
        loaded = partial(load, path, device, threads, kv_tokens)
        return served(name, manifest, loaded, limits.sequences, partial(changed, name))

    registry = Registry([model_of(name, path) for name, path in artifacts])
    sock = _listen(host, port, insecure)
    address, bound_port = sock.getsockname()[:2]
    url = f"http://[{address}]:{bound_port}" if ":" in address else f"http://{address}:{bound_port}"
    app = build_app(registry, limits, None if insecure else {*LOOPBACK, host, address})
    config = uvicorn.Config(
        app,
        http="h11",  # the same parser everywhere, whatever else is installed
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = _Server(config, url, registry, announce)
    try:
        server.run([sock])
    finally:
        sock.close()
        for model in registry:
            model.stop()
            if model.thread.model is not None:
                model.thread.model.close()
    for model in registry:
        if model.thread.model is None and model.thread.error is not None:
            raise model.thread.error


class _Server(uvicorn.Server):
    """Uvicorn, saying where it listens, and ending at the second signal of any kind."""

    def __init__(self, config: uvicorn.Config, url: str, registry: Registry, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._url = url
        self._registry = registry
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        names = ", ".join(model.name for model in self._registry)
        self._announce(f"serving {names} at {self._url}/v1, loading the model{'s' if len(self._registry) > 1 else ''}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True
        running, limit = sum(model.thread.open for model in self._registry), self.config.timeout_graceful_shutdown
        what = f": running answers ({running}) have up to {limit} s; signal again to stop at once" if running else ""
        self._announce(f"stopping{what}")


def _listen(host: str, port: int, insecure: bool) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: The address is open to other machines and that was not asked for, or it cannot
            be had.
    """
    if not insecure and not _is_loopback(host):
        raise UsageError(
            f"refusing to listen on {host}: the server asks nobody for a key, so whoever reaches that address "
            "could use the model.",
            "Listen on 127.0.0.1 behind a proxy that checks who asks, or pass --insecure if the network is trusted.",
        )
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port.", "Use 1 to 65535, or 0 for any that is free.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({_reason(error)}).", "Choose another --host or --port."
        ) from error


def _reason(error: OSError) -> str:
    """What the system says, without the address that Python adds; look-ups of names have numbers of their own."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror or error)
    return os.strerror(error.errno)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; only this one is sure to mean this machine
        return host == "localhost"
