"""``aicc serve``: an artifact behind OpenAI's HTTP interface. Needs the extra ``serve``, not the compiler."""

from __future__ import annotations

from pathlib import Path

import click

from aicc.cli.output import note
from aicc.cli.run_commands import kv_option, runtime_options


@click.command(short_help="Serve a model over HTTP, as OpenAI's API does.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 is any free.",
)
@click.option("--alias", metavar="NAME", help="What requests call the model. [default: the artifact's name]")
@kv_option
@click.option(
    "--insecure", is_flag=True, help="Allow an address that other machines can reach; nobody is asked for a key."
)
@runtime_options
def serve(
    artifact: Path,
    host: str,
    port: int,
    alias: str | None,
    kv_tokens: int | None,
    insecure: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Serve ARTIFACT over HTTP, as OpenAI's API does.

    It answers /v1/chat/completions, /v1/completions, /v1/models, /health/live and /health/ready.
    The first Ctrl-C stops accepting and lets running answers finish; the second ends at once.
    """
    from aicc.runtime.server import serve as serve_artifact

    serve_artifact(
        artifact,
        host,
        port,
        alias=alias,
        device=device,
        threads=threads,
        kv_tokens=kv_tokens,
        insecure=insecure,
        announce=note,
    )
