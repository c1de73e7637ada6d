"""Requests made from OpenAI's published document, by version and hash, get no 5xx and answers that conform to it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from environments import environment
from live_server import NAME, listening

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.server import create_app
from aicc.runtime.server.openai.chat_schema import ChatRequest
from aicc.runtime.server.openai.completion_schema import CompletionRequest
from aicc.runtime.server.openai.embedding_schema import EmbeddingRequest
from aicc.runtime.server.openai.response_schema import ResponseRequest
from aicc.runtime.session import Session

_SOURCE = Path(__file__).parent / "openapi"
_REQUESTS: list[type[msgspec.Struct]] = [ChatRequest, CompletionRequest, EmbeddingRequest, ResponseRequest]


@pytest.fixture(scope="module")
def url(cpu_artifact: Artifact, encoder: Session) -> Iterator[str]:
    """A language model whose memory is full soon, since most requests name no limit, and an encoder."""
    with (
        load(cpu_artifact.path, kv_tokens=256) as model,
        listening(create_app({NAME: model, "encoder": encoder})) as url,
    ):
        yield url


@pytest.mark.full
def test_requests_made_from_the_published_document_are_answered_by_it(url: str, tmp_path: Path) -> None:
    python = environment(_SOURCE / "requirements.txt", _SOURCE / "document.txt")
    fields = {f.name for r in _REQUESTS for f in msgspec.structs.fields(r) if f.type is not type(None)}
    subprocess.run(
        [python, _SOURCE / "document.py", NAME, "encoder", ",".join(sorted(fields)), tmp_path / "openapi.json"],
        check=True,
    )
    checks = "not_a_server_error,response_schema_conformance,content_type_conformance"
    options = ["--phases", "fuzzing", "--mode", "positive", "-n", "60", "--generation-deterministic", "--no-color"]
    command = [python.parent / "st", "run", "openapi.json", "--url", f"{url}/v1", "-c", checks, *options]

    done = subprocess.run([*command, "--suppress-health-check", "all"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
