"""``aicc serve``: an artifact behind the OpenAI-compatible HTTP interface."""

from __future__ import annotations

from pathlib import Path

import click

from aicc.cli.run_commands import runtime_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on.")
@runtime_options
def serve(artifact: Path, host: str, port: int, device: str | None, threads: int | None) -> None:
    """Serve ARTIFACT over HTTP, as /v1/chat/completions, /v1/completions and /v1/models."""
