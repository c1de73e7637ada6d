"""`docs/server.md` and the official client's own types agree with the messages."""

import inspect
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from ollama import _types as ollama_types
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from aicc.runtime.server.ollama import schema as ollama
from aicc.runtime.server.openai.chat_schema import ChatRequest
from aicc.runtime.server.openai.completion_schema import CompletionRequest
from aicc.runtime.server.openai.embedding_schema import EmbeddingRequest
from aicc.runtime.server.openai.response_schema import ResponseRequest
from aicc.runtime.server.recording import AccessLog

DOCUMENT = Path(__file__).parents[2] / "docs" / "server.md"
REQUESTS: dict[str, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
    "responses": ResponseRequest,
}
OLLAMA: dict[str, type[msgspec.Struct]] = {
    "chat": ollama.ChatRequest,
    "generate": ollama.GenerateRequest,
    "embed": ollama.EmbedRequest,
    "options": ollama.Options,
}


def fields_table(requests: dict[str, type[msgspec.Struct]]) -> str:
    """The table of fields, as the document must have it."""
    takers: dict[tuple[str, str], list[str]] = {}
    for endpoint, request in requests.items():
        for field in msgspec.structs.fields(request):
            if described(field.type):
                takers.setdefault((field.name, description(field.type)), []).append(endpoint)
    rows = [
        f"| `{name}` | {', '.join(endpoints)} | {meaning} |"
        for (name, meaning), endpoints in sorted(takers.items(), key=lambda item: item[0][0])
    ]
    return "\n".join(["| Field | Of | Meaning |", "| --- | --- | --- |", *rows])


def described(annotated: Any) -> bool:
    return any(meta.description for meta in getattr(annotated, "__metadata__", ()))


def description(annotated: Any) -> str:
    [text] = [meta.description for meta in annotated.__metadata__ if meta.description]
    assert isinstance(text, str)
    return text


def unimplemented(request: type[msgspec.Struct]) -> str:
    """The fields a request refuses by name, as the document lists them."""
    return ", ".join(f"`{f.name}`" for f in msgspec.structs.fields(request) if f.type is type(None))


@pytest.mark.parametrize("requests", [REQUESTS, OLLAMA], ids=["openai", "ollama"])
def test_the_document_has_the_table_of_fields(requests: dict[str, type[msgspec.Struct]]) -> None:
    assert fields_table(requests) in DOCUMENT.read_text()


@pytest.mark.parametrize("requests", [REQUESTS, OLLAMA], ids=["openai", "ollama"])
def test_the_document_lists_what_is_not_implemented(requests: dict[str, type[msgspec.Struct]]) -> None:
    document = DOCUMENT.read_text()

    assert [name for name in requests if f"{name.capitalize()}: {unimplemented(requests[name])}." not in document] == []


def test_the_document_has_every_metric(url: str) -> None:
    families = re.findall("^# TYPE (aicc_[a-z_]+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)

    assert len(families) > 10
    ours = [name for name in families if not name.endswith("_created")]  # prometheus-client's own
    assert [name for name in ours if f"`{name}`" not in DOCUMENT.read_text()] == []


def test_the_document_has_every_field_of_the_access_log() -> None:
    line = inspect.getsource(AccessLog.write)

    assert [
        name for name in re.findall('^ +"([a-z_]+)":', line, re.MULTILINE) if f"`{name}`" not in DOCUMENT.read_text()
    ] == []


@pytest.mark.parametrize(
    ("request_type", "parameters"),
    [
        (ChatRequest, chat_create_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
        (ResponseRequest, response_create_params.ResponseCreateParamsBase),
    ],
)
def test_every_parameter_of_openai_s_client_is_known(request_type: type[msgspec.Struct], parameters: Any) -> None:
    known = {field.name for field in msgspec.structs.fields(request_type)}

    assert set(parameters.__annotations__) <= known


@pytest.mark.parametrize(
    ("request_type", "parameters"),
    [
        (ollama.ChatRequest, ollama_types.ChatRequest),
        (ollama.GenerateRequest, ollama_types.GenerateRequest),
        (ollama.EmbedRequest, ollama_types.EmbedRequest),
        (ollama.Options, ollama_types.Options),
        (ollama.Message, ollama_types.Message),
    ],
)
def test_every_parameter_of_ollama_s_client_is_known(request_type: type[msgspec.Struct], parameters: Any) -> None:
    known = {field.name for field in msgspec.structs.fields(request_type)}

    assert set(parameters.model_fields) <= known
