"""``aicc serve``: artifacts behind OpenAI's HTTP interface. Needs the extra ``serve``, not the compiler."""

from __future__ import annotations

from pathlib import Path

import click

from aicc.cli.output import note
from aicc.cli.run_commands import kv_option, runtime_options


@click.command(short_help="Serve models over HTTP, as OpenAI's API does.")
@click.argument("artifacts", metavar="[NAME=]ARTIFACT...", nargs=-1, required=True)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 is any free.",
)
@kv_option
@click.option(
    "--insecure", is_flag=True, help="Allow an address that other machines can reach; nobody is asked for a key."
)
@runtime_options
def serve(
    artifacts: tuple[str, ...],
    host: str,
    port: int,
    kv_tokens: int | None,
    insecure: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Serve one or more ARTIFACTs over HTTP, as OpenAI's API does.

    Requests call a model what its artifact is called, or NAME: `aicc serve chat=smol.aicc
    minilm-l6.aicc`. It answers /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models,
    /health/live and /health/ready. The first Ctrl-C stops accepting and lets running answers finish; the second ends at
    once.
    """
    from aicc.runtime.server import serve as serve_artifacts

    serve_artifacts(
        [_named(artifact) for artifact in artifacts],
        host,
        port,
        device=device,
        threads=threads,
        kv_tokens=kv_tokens,
        insecure=insecure,
        announce=note,
    )


def _named(argument: str) -> tuple[str | None, Path]:
    """A name and a path; an argument that is a path as a whole has no name."""
    name, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        return None, Path(argument)
    if not name or not path:
        raise click.UsageError(f"{argument!r} is neither an artifact nor NAME=ARTIFACT.")
    return name, Path(path)
