"""The artifact: one directory, ``model.aicc/``, and the only definition of its format.

Both stages use this module: the compiler writes what is described here, the runtime reads it.
``docs/artifact-format.md`` explains it for people.
"""

from __future__ import annotations

import msgspec

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
PAGE = 4096  # weights files are padded to this, so that each can be mapped
TENSOR_ALIGNMENT = 64  # bytes, inside a weights file
MANIFEST_NAME = "manifest.json"
GRAPH_PATH = "graph/model.onnx"
WEIGHTS_PATH = "weights/model.bin"
REPORT_PATH = "report.json"
TOKENIZER_PATH = "tokenizer/tokenizer.json"
CHAT_TEMPLATE_PATH = "tokenizer/chat_template.jinja"


class Format(msgspec.Struct, frozen=True):
    major: int
    minor: int


class SourceInfo(msgspec.Struct, frozen=True):
    """Where the model came from. ``sha256`` is over its weight files, in name order."""

    name: str
    kind: str  # gguf | huggingface | onnx
    sha256: str
    revision: str = ""
    licence: str = ""


class TensorSpec(msgspec.Struct, frozen=True):
    """A named array: numpy dtype name; a dimension is a size, or a name when it varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Signature(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class LlmFacts(msgspec.Struct, frozen=True):
    """What a generator needs to know of a decoder."""

    context_length: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    add_bos: bool = False
    weight_bytes_per_token: int = 0  # weights read to decode one token


class MemoryFacts(msgspec.Struct, frozen=True):
    """Predicted bytes: what loading needs, and what each cached token adds."""

    weight_bytes: int
    kv_bytes_per_token: int = 0
    activation_bytes: int = 0


class Quality(msgspec.Struct, frozen=True):
    """Against the source at float32, teacher-forced (``aicc eval``); nats for KL."""

    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    ppl_reference: float
    ppl: float
    text: str  # which text it was measured on, by name and sha256


class FileEntry(msgspec.Struct, frozen=True):
    path: str  # posix, relative, inside the artifact
    bytes: int
    sha256: str


class Variant(msgspec.Struct, frozen=True):
    """One executable of the model, for one target.

    ``files`` are the paths under ``variants/<name>/`` the provider may open; ``requires`` is the
    provider's own descriptor of the driver or runtime it needs; ``options`` are what the
    executable was compiled with and must be loaded with.
    """

    name: str
    target: str
    files: tuple[str, ...]
    requires: dict[str, str] = {}
    options: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True):
    format: Format
    name: str  # what servers call the model
    kind: str  # decoder | tensors
    producer: dict[str, str]  # package → version that made it
    source: SourceInfo
    quantization: str  # what the weights are, e.g. "int4 group 32"
    signatures: dict[str, Signature]
    variants: tuple[Variant, ...]
    memory: MemoryFacts
    files: tuple[FileEntry, ...]
    llm: LlmFacts | None = None
    quality: Quality | None = None
