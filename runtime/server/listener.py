"""``aicc serve``: the listening socket, signals, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.draft_model import check_draft
from aicc.runtime.errors import MismatchError, UsageError
from aicc.runtime.options import EngineOptions
from aicc.runtime.server.app import Front, Limits, Service, build_app
from aicc.runtime.server.connections import Connection, is_loopback, listen, tls_context
from aicc.runtime.server.hosts import LOOPBACK
from aicc.runtime.server.keys import ApiKeys
from aicc.runtime.server.model_thread import ModelThread
from aicc.runtime.server.recording import AccessLog
from aicc.runtime.server.registry import Decoder, Registry, Tensors, served
from aicc.runtime.server.tracing import Tracing
from aicc.runtime.speculation import SpeculationOptions

_FLUSH_SECONDS = 5  # for the last words of answers that are cut off
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # why no connection can be taken in
_QUIET_SECONDS = 60.0  # between two times of saying so
log = logging.getLogger("uvicorn.error")


def serve(
    artifacts: Sequence[tuple[str | None, str | os.PathLike[str]]],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grpc_port: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    kv_tokens: int | None = None,
    prefix_cache: bool = True,
    speculate: bool = False,
    draft: str | os.PathLike[str] | None = None,
    reproducible: bool = False,
    api_key_file: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    cors_origins: Sequence[str] = (),
    tls_certificate: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    access_log: str | os.PathLike[str] | None = None,
    log_prompts: bool = False,
    otlp_endpoint: str | None = None,
    limits: Limits | None = None,
    idle_seconds: float = 30.0,
    drain_seconds: float = 30.0,
    announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Serve artifacts until SIGTERM or Ctrl-C.

    It listens before the models are loaded, so that ``/health/ready`` can tell. After the first
    signal new requests are answered 503 and what is running may finish; the second ends the process
    at once.

    Args:
        artifacts: ``.aicc`` directories, each after what requests call the model; None is the
            artifact's own name. They are loaded at the same time, each on a thread of its own.
        host: Address to listen on.
        port: 0 takes any that is free.
        grpc_port: Port of the same address for the Open Inference Protocol over gRPC, 0 for any that is free; None
            is no gRPC.
        device: As :func:`aicc.runtime.load`, and so are ``threads`` and ``kv_tokens``; for every artifact.
        threads: Threads to compute with.
        kv_tokens: Tokens the KV cache holds over all sequences.
        prefix_cache: As :func:`aicc.runtime.load`, and so is ``reproducible``.
        speculate: Guess tokens from the text itself and compute several in a step.
        draft: As :func:`aicc.runtime.load`; for the one language model among the artifacts.
        reproducible: The same seed gives the same answer, whatever else is asked.
        api_key_file: Keys, one a line, of which every request but those to the health endpoints and for the
            chat page's files must bring one; then any name may stand in Host headers.
        insecure: Without keys, listen on an address that other machines can reach, and answer to any name in
            Host headers.
        cors_origins: Origins whose web pages may use the server: ``https://example.com``.
        tls_certificate: PEM file of a certificate, to speak HTTPS; needs ``tls_key``.
        tls_key: PEM file of its key.
        access_log: File to append the access log to; None is stderr.
        log_prompts: Whether it has the requests' bodies.
        otlp_endpoint: Base address of an OpenTelemetry collector, which gets spans of the requests.
        limits: What to take on.
        idle_seconds: Longest a connection may stand still: without a request, in the middle of one's headers,
            or not reading the answer.
        drain_seconds: Longest to wait for what is running at the end.
        announce: Told one line when listening, when a model is ready and when stopping.

    Raises:
        MismatchError: gRPC is asked for and not installed.
        UsageError: The address may not or cannot be listened on; a file of keys, TLS or the log cannot be
            used; two models have one name.
        AiccError: A model cannot be loaded.
    """
    start_rpc = None if grpc_port is None else _rpc_starter()
    limits = limits or Limits()
    speculation = SpeculationOptions() if speculate else None
    # Refuses what excludes each other.
    EngineOptions(prefix_cache, speculation if draft is None else SpeculationOptions(), reproducible)
    if speculate and draft is not None:
        raise UsageError("--speculate and --draft exclude each other.", "Leave one of them out.")
    keys = None if api_key_file is None else ApiKeys.read(api_key_file)
    tls = tls_context(tls_certificate, tls_key)
    _check_exposure(host, keys, insecure)
    _check_origins(cors_origins)
    access = AccessLog(access_log, log_prompts)
    tracing = None if otlp_endpoint is None else Tracing.to(otlp_endpoint)

    def say(line: str) -> None:
        with suppress(OSError, ValueError):  # a reader that left, or a disk that is full, is no reason to stop serving
            announce(line)

    def changed(name: str, thread: ModelThread[Any]) -> None:
        if thread.model is None:
            server.should_exit = True  # never loaded: the reason is raised below
        elif thread.error is not None:
            say(f"{name} has failed: {thread.error}; restart the server")
        else:
            if reason := thread.model.compatibility.reason:
                say(f"note: {reason}")
            say(f"{name} is ready on {thread.model.device}")

    def model_of(name: str | None, path: str | os.PathLike[str]) -> Decoder | Tensors:
        manifest = Artifact.open(path).manifest
        name = name or manifest.name
        drafts = draft if manifest.kind == "decoder" else None
        loaded = partial(load, path, device, threads, kv_tokens, prefix_cache, speculation, reproducible, drafts)
        return served(name, manifest, loaded, limits.sequences, partial(changed, name))

    if draft is not None:
        _check_draft((Artifact.open(path) for _, path in artifacts), Artifact.open(draft))
    registry = Registry([model_of(name, path) for name, path in artifacts])
    sock = listen(host, port)
    address, bound_port = sock.getsockname()[:2]
    url = f"http{'s' if tls else ''}://{f'[{address}]' if ':' in address else address}:{bound_port}"
    if keys and not tls and not is_loopback(host):
        say("note: keys cross the network in the clear; give --tls-certificate and --tls-key, or use a proxy")
    hosts = None if insecure or keys else {*LOOPBACK, host, address}
    service = Service(registry, limits, Front(hosts, keys, cors_origins, access, tracing))
    config = uvicorn.Config(
        build_app(service),
        http=Connection,  # uvicorn's h11, the same parser everywhere, whatever else is installed
        loop="asyncio",  # uvloop would close connections past the limit of descriptors without a word
        ws="none",
        lifespan="on",
        log_level="error",  # its warnings tell of each peer that speaks no HTTP, or asks for another protocol
        use_colors=False,  # it would ask stderr for them, which may be closed
        access_log=False,
        server_header=False,
        ssl_context_factory=None if tls is None else lambda config, default: tls,
        timeout_keep_alive=idle_seconds,  # type: ignore[arg-type]  # any number of seconds will do
        timeout_graceful_shutdown=_FLUSH_SECONDS,
    )
    server = _Server(config, url, service, drain_seconds, say)
    if start_rpc is not None:
        files = (tls_certificate, tls_key) if tls_certificate is not None and tls_key is not None else None
        server.start_rpc = partial(start_rpc, service, address, grpc_port or 0, files, idle_seconds)
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
    """Uvicorn, saying where it listens, draining at the first signal of any kind and ending at the second."""

    def __init__(
        self,
        config: uvicorn.Config,
        url: str,
        service: Service,
        drain_seconds: float,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._url = url
        self._registry = service.registry
        self._drain = service.drain
        self._drain_seconds = drain_seconds
        self._deadline = 0.0
        self._announce = announce
        self._quiet_until = 0.0
        self.start_rpc: Callable[[], Awaitable[tuple[Any, int]]] | None = None  # gRPC beside it
        self._rpc: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._failed)
        if self.start_rpc is not None:
            self._rpc, port = await self.start_rpc()
            self._announce(f"the Open Inference Protocol over gRPC is on port {port}")
        await super().startup(sockets)
        names = ", ".join(model.name for model in self._registry)
        loading = f"loading the model{'s' if len(self._registry) > 1 else ''}"
        self._announce(f"serving {names} at {self._url}/v1, the chat page at {self._url}/, {loading}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._rpc is not None:
            await self._rpc.stop(_FLUSH_SECONDS)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain.draining or self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._deadline = time.monotonic() + self._drain_seconds
        self._drain.draining = True
        running, limit = self._drain.open, f"{self._drain_seconds:g}"
        what = f": running answers ({running}) have up to {limit} s; signal again to stop at once" if running else ""
        self._announce(f"stopping{what}")

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio could not do; without descriptors it tries thousands of times a second to accept."""
        error = context.get("exception")
        if self.should_exit and "_start_serving" in context["message"]:
            return  # it tries once more after the end, with a socket that is closed
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif loop.time() >= self._quiet_until:
            self._quiet_until = loop.time() + _QUIET_SECONDS
            reason = os.strerror(error.errno)
            log.error("New connections wait until others end (%s). Allow more with ulimit -n.", reason)

    async def on_tick(self, counter: int) -> bool:
        if self._drain.draining and not self.should_exit:
            late = time.monotonic() >= self._deadline
            if late:  # what still runs is told that it has failed, instead of being cut off
                await asyncio.gather(*(asyncio.to_thread(model.stop) for model in self._registry))
            self.should_exit = late or not self._drain.open
        return await super().on_tick(counter)


def _rpc_starter() -> Callable[..., Awaitable[tuple[Any, int]]]:
    # Else grpcio tells stderr of every call it refuses, between the lines of the access log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from aicc.runtime.server.open_inference.rpc_server import start
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise MismatchError("gRPC needs grpcio and protobuf.", "Install them: pip install 'aicc[grpc]'.") from error
    return start


def _check_draft(artifacts: Iterable[Artifact], draft: Artifact) -> None:
    models = [artifact for artifact in artifacts if artifact.manifest.kind == "decoder"]
    if len(models) != 1:
        raise UsageError(
            f"a draft model is for one language model, and {len(models)} are to be served.",
            "Serve the model that it drafts for by itself.",
        )
    check_draft(models[0], draft)


def _check_exposure(host: str, keys: ApiKeys | None, insecure: bool) -> None:
    if keys is None and not insecure and not is_loopback(host):
        raise UsageError(
            f"refusing to listen on {host}: the server asks nobody for a key, so whoever reaches that address "
            "could use the model.",
            "Give it keys with --api-key-file, listen on 127.0.0.1, or pass --insecure if the network is trusted.",
        )


def _check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        try:
            parts = urlsplit(origin)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole or origin != f"{parts.scheme}://{parts.netloc}".lower() or "@" in origin:
            raise UsageError(
                f"{origin!r} is no origin of web pages.", "Name each in full and lower case: https://example.com"
            )
