"""``aicc serve``: artifacts behind OpenAI's HTTP interface. Needs the extra ``serve``, not the compiler."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aicc.cli.configuration import ConfiguredCommand
from aicc.cli.options import draft_option, kv_option, runtime_options, speculate_option
from aicc.cli.output import note

_FILE = click.Path(path_type=Path)


class _Seconds(click.FloatRange):
    """A time that a clock can reach: ranges alone let NaN and infinity through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See Click."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{seconds} is no time.", param, ctx)
        return seconds


_SECONDS = _Seconds(min=0, min_open=True)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server listens, who may ask, and what is logged."""
    options = [
        click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.option(
            "--port",
            metavar="N",
            type=click.IntRange(0, 65535),
            default=8000,
            show_default=True,
            help="Port to listen on; 0 is any free.",
        ),
        click.option(
            "--grpc-port",
            metavar="N",
            type=click.IntRange(0, 65535),
            help="Port for the Open Inference Protocol over gRPC, 0 for any free. Needs `aicc[grpc]`. "
            "[default: no gRPC]",
        ),
        click.option(
            "--api-key-file",
            type=_FILE,
            metavar="FILE",
            help="Keys, one a line, # before comments. Requests must bring one as `Authorization: Bearer KEY`. "
            "[default: nobody is asked for a key]",
        ),
        click.option("--insecure", is_flag=True, help="Allow an address that other machines can reach without keys."),
        click.option(
            "--cors-origin",
            multiple=True,
            metavar="ORIGIN",
            help="Let web pages of this origin (https://example.com) use the server. Repeatable. [default: none]",
        ),
        click.option("--tls-certificate", type=_FILE, metavar="FILE", help="Speak HTTPS with this certificate (PEM)."),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="The certificate's private key (PEM)."),
        click.option(
            "--access-log", type=_FILE, metavar="FILE", help="Append the access log to FILE. [default: stderr]"
        ),
        click.option("--log-prompts", is_flag=True, help="Write requests' bodies to the access log, prompts included."),
        click.option(
            "--otlp-endpoint",
            metavar="URL",
            help="Send spans of requests to an OpenTelemetry collector (http://localhost:4318). [default: none]",
        ),
    ]
    return _all(options, command)


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the server takes on."""
    options = [
        click.option(
            "--max-sequences",
            type=click.IntRange(min=1),
            metavar="N",
            default=128,
            show_default=True,
            help="Most sequences running or waiting for each model; more are answered 429.",
        ),
        click.option(
            "--max-body-bytes",
            type=click.IntRange(min=1),
            metavar="N",
            help="Largest request body. [default: 1 MiB, or 64 for each token of the longest context]",
        ),
        click.option(
            "--body-seconds",
            type=_SECONDS,
            metavar="S",
            default=30.0,
            show_default=True,
            help="Longest a request body may take to arrive.",
        ),
        click.option(
            "--request-seconds",
            type=_SECONDS,
            metavar="S",
            help="Longest a generation may take, waiting included. [default: no limit]",
        ),
        click.option(
            "--idle-seconds",
            type=_SECONDS,
            metavar="S",
            default=30.0,
            show_default=True,
            help="Close connections that ask nothing, or do not read their answer, for so long.",
        ),
        click.option(
            "--drain-seconds",
            type=_Seconds(min=0),
            metavar="S",
            default=30.0,
            show_default=True,
            help="Longest running answers may take after the first SIGTERM or Ctrl-C.",
        ),
    ]
    return _all(options, command)


def _all(options: list[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=ConfiguredCommand, short_help="Serve models over HTTP, as OpenAI's API does.")
@click.argument("artifacts", metavar="[NAME=]ARTIFACT...", nargs=-1, required=True)
@access_options
@limit_options
@kv_option
@click.option("--no-prefix-cache", is_flag=True, help="Compute every prompt from its start.")
@speculate_option
@draft_option
@click.option(
    "--reproducible",
    is_flag=True,
    help="The same seed gives the same answer whatever else is asked, on chips too that round differently "
    "in a batch. Slower: one sequence at a time, every prompt from its start.",
)
@runtime_options
def serve(
    artifacts: tuple[str, ...],
    cors_origin: tuple[str, ...],
    max_sequences: int,
    max_body_bytes: int | None,
    body_seconds: float,
    request_seconds: float | None,
    no_prefix_cache: bool,
    **options: Any,
) -> None:
    """Serve one or more ARTIFACTs over HTTP, as OpenAI's API and Ollama's do, with a chat page at /.

    Requests call a model by the name in its artifact, which the first line shows, or by NAME: `aicc serve
    chat=smol.aicc minilm-l6.aicc`. It answers /v1/chat/completions, /v1/completions, /v1/responses,
    /v1/embeddings, /v1/models, Ollama's /api/chat, generate, embed, tags, show, ps and version, the Open
    Inference Protocol's /v2 (and its gRPC on --grpc-port), /metrics, /health/live and /health/ready. After
    the first SIGTERM or Ctrl-C new requests are answered 503 and running ones may finish; the second ends at once.

    Every option may also come from the environment as AICC_ and its name (AICC_API_KEY_FILE; lists have
    spaces between), from ./aicc.toml and from $XDG_CONFIG_HOME/aicc/config.toml (~/.config), as `port =
    8080` under [serve]. The command line goes before the environment, that before ./aicc.toml, and that
    before the other file.
    """
    from aicc.runtime.server import Limits
    from aicc.runtime.server import serve as serve_artifacts

    serve_artifacts(
        [_named(artifact) for artifact in artifacts],
        cors_origins=cors_origin,
        limits=Limits(max_sequences, max_body_bytes, body_seconds, request_seconds),
        prefix_cache=not no_prefix_cache,
        announce=note,
        **options,
    )


def _named(argument: str) -> tuple[str | None, Path]:
    """A name and a path; an argument that is a path as a whole has no name."""
    name, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        return None, Path(argument)
    if not name or not path:
        raise click.UsageError(f"{argument!r} is neither an artifact nor NAME=ARTIFACT.")
    return name, Path(path)
