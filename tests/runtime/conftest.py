"""What the runtime's tests share: a real tokenizer and template, and decoders small enough to reason about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
from engine_run import Run
from tiny_decoder import CONTEXT, tiny_graph, write_tiny

from aicc.compiler.facts import graph_signatures
from aicc.compiler.importers.gguf_file import read_gguf
from aicc.compiler.importers.gguf_tokenizer import tokenizer_json
from aicc.compiler.models import pull
from aicc.runtime import Model, load
from aicc.runtime.tokenizer import Tokenizer
from aicc.targets.portable import GraphDecoder

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "smollm2-135m-instruct.json"
SMALL_VOCAB = 300


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """Prompts with their ids, and what the model says greedily in float32."""
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The demo model's weights, as `aicc pull` leaves them in the cache."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf: Path) -> dict[str, Any]:
    return read_gguf(smollm2_gguf).metadata


@pytest.fixture(scope="session")
def smollm2_template(smollm2_metadata: dict[str, Any]) -> str:
    return smollm2_metadata["tokenizer.chat_template"]


@pytest.fixture(scope="session")
def tokenizer_file(smollm2_metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer_json(smollm2_metadata, "SmolLM2"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


@pytest.fixture(scope="session")
def tiny_artifact(tokenizer_file: Path, smollm2_template: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of two random layers that reads and writes SmolLM2's tokens."""
    output = tmp_path_factory.mktemp("tiny") / "tiny.aicc"
    return write_tiny(output, 49152, tokenizer_file.read_text(encoding="utf-8"), smollm2_template).path


@pytest.fixture(scope="session")
def model(tiny_artifact: Path) -> Model:
    loaded = load(tiny_artifact)
    assert isinstance(loaded, Model)
    return loaded


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., GraphDecoder]:
    """Makes executables of the decoder of 300 tokens with a KV memory and steps as small as a test wants."""
    graph = tiny_graph(SMALL_VOCAB)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    names = [output.name for output in session.get_outputs()]

    def make(kv_tokens: int = CONTEXT, page_size: int = 4, max_batch_tokens: int = 64) -> GraphDecoder:
        return GraphDecoder(
            lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True)),
            graph_signatures(graph),
            "test",
            kv_tokens,
            page_size,
            max_batch_tokens,
        )

    return make


@pytest.fixture(scope="session")
def alone(make_decoder) -> Callable[..., list[int]]:
    """What a request generates with an engine to itself."""
    run = Run(make_decoder(), prefix_cache=False)

    def generate(prompt: list[int], **params) -> list[int]:
        request = run.submit(prompt, **params)
        return run.finish().ids(request)

    return generate
