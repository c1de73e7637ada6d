"""``aicc serve``: the listening socket, signals, and the end."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.server.app import Limits, build_app
from aicc.runtime.server.engine_thread import EngineThread
from aicc.runtime.server.hosts import LOOPBACK

_BACKLOG = 128  # connections the system keeps until they are accepted


def serve(
    artifact_path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    alias: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    kv_tokens: int | None = None,
    insecure: bool = False,
    drain_seconds: int = 30,
    limits: Limits | None = None,
    announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Serve an artifact until SIGTERM or Ctrl-C.

    It listens before the model is loaded, so that ``/health/ready`` can tell. The first signal
    stops accepting and lets what is running finish; the second ends the process at once.

    Args:
        artifact_path: The ``.aicc`` directory of a decoder.
        host: Address to listen on.
        port: 0 takes any that is free.
        alias: What requests call the model; None is the artifact's own name.
        device: As :func:`aicc.runtime.load`, and so are ``threads`` and ``kv_tokens``.
        threads: Threads to compute with.
        kv_tokens: Tokens the KV cache holds over all sequences.
        insecure: Listen on an address that other machines can reach, and answer to any name in Host headers.
        drain_seconds: Longest to wait for what is running at the end.
        limits: What to take on.
        announce: Told one line when listening, when ready and when stopping.

    Raises:
        UsageError: The address may not or cannot be listened on; the artifact is no decoder.
        AiccError: The model cannot be loaded.
    """
    manifest = Artifact.open(artifact_path).manifest
    if manifest.kind != "decoder":
        raise UsageError(
            f"{os.fspath(artifact_path)} maps tensors to tensors, and only decoders are served.", "Use `aicc run`."
        )
    limits = limits or Limits()
    sock = _listen(host, port, insecure)
    address, bound_port = sock.getsockname()[:2]
    url = f"http://[{address}]:{bound_port}" if ":" in address else f"http://{address}:{bound_port}"

    def load_decoder() -> Model:
        model = load(artifact_path, device, threads, kv_tokens)
        assert isinstance(model, Model)  # its manifest says so
        return model

    def changed(engine: EngineThread) -> None:
        if engine.model is None:
            server.should_exit = True  # never loaded: the reason is raised below
        elif engine.error is not None:
            announce(f"the model has failed: {engine.error}; restart the server")
        else:
            if reason := engine.model.compatibility.reason:
                announce(f"note: {reason}")
            announce(f"ready on {engine.model.device}")

    engine = EngineThread(load_decoder, limits.sequences, changed)
    app = build_app(engine, manifest, alias, limits, None if insecure else {*LOOPBACK, host, address})
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
    server = _Server(config, url, f"{alias or manifest.name}", engine, announce)
    try:
        server.run([sock])
    finally:
        sock.close()
        engine.stop()
        if engine.model is not None:
            engine.model.close()
    if engine.model is None and engine.error is not None:
        raise engine.error


class _Server(uvicorn.Server):
    """Uvicorn, saying where it listens, and ending at the second signal of any kind."""

    def __init__(
        self, config: uvicorn.Config, url: str, name: str, engine: EngineThread, announce: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._url = url
        self._name = name
        self._engine = engine
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce(f"serving {self._name} at {self._url}/v1, loading the model")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True
        running, limit = self._engine.open_sequences, self.config.timeout_graceful_shutdown
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
