"""The manifest: the schema of ``manifest.json``, its encoding and everything it must satisfy.

A field's own limits stand in its type, and msgspec checks them; what must hold between fields is
in :func:`_inconsistencies`. A manifest ends with the sha256 of its own text, so that a changed
byte is noticed wherever it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from aicc.runtime.errors import IntegrityError, MismatchError

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
MANIFEST_NAME = "manifest.json"
TIMINGS_PATH = "timings.json"  # beside the report, not in the manifest: it differs from run to run

# What a reader is willing to believe: far above any real model, far below what hurts to handle.
_MAX_ITEMS = 10_000
_MAX_EXPANSION = 32  # a stored bit grows to at most a float32 in memory

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # no control characters: names end up on terminals
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_SAFE_PATH = re.compile(rf"{_COMPONENT}(/{_COMPONENT})*")

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=_PRINTABLE)]
Text = Annotated[str, Meta(max_length=10_000, pattern=_PRINTABLE)]
Identifier = Annotated[str, Meta(max_length=100, pattern=rf"^{_COMPONENT}\Z")]
TargetName = Annotated[str, Meta(max_length=100, pattern=rf"^{_COMPONENT}:{_COMPONENT}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ByteCount = Annotated[int, Meta(ge=0, le=1 << 50)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 24)]
Dimension = Annotated[int, Meta(ge=0, le=1 << 40)] | Name
Facts = Annotated[dict[Name, Text], Meta(max_length=1000)]
DtypeName = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64",
]  # fmt: skip


class Format(msgspec.Struct, frozen=True):
    """The version of the format: readers refuse another major, and ignore what a later minor adds."""

    major: Annotated[int, Meta(ge=0, le=1 << 31)]
    minor: Annotated[int, Meta(ge=0, le=1 << 31)]


class SourceInfo(msgspec.Struct, frozen=True):
    """Where the model came from. ``sha256`` is over its weight files, in name order."""

    name: Annotated[Text, Meta(min_length=1)]
    kind: Name  # gguf | huggingface | onnx
    sha256: Sha256
    revision: Text = ""
    licence: Text = ""


class TensorSpec(msgspec.Struct, frozen=True):
    """A named array: numpy dtype name; a dimension is a size, or a name when it varies."""

    name: Name
    dtype: DtypeName
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=32)]


class Signature(msgspec.Struct, frozen=True):
    """What one entry point of the model takes and gives."""

    inputs: Annotated[tuple[TensorSpec, ...], Meta(max_length=_MAX_ITEMS)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=_MAX_ITEMS)]


class LlmFacts(msgspec.Struct, frozen=True):
    """What a generator needs to know of a decoder."""

    context_length: Annotated[int, Meta(ge=1, le=100_000_000)]
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)]
    layers: Annotated[int, Meta(ge=1, le=10_000)]
    kv_heads: Annotated[int, Meta(ge=1, le=65_536)]
    head_dim: Annotated[int, Meta(ge=1, le=65_536)]
    eos_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=1000)]
    bos_token_id: TokenId | None = None
    add_bos: bool = False
    weight_bytes_per_token: ByteCount = 0  # weights read to decode one token


class EmbeddingFacts(msgspec.Struct, frozen=True):
    """How the vector of a text comes from an encoder's last hidden states."""

    pooling: Literal["mean", "cls", "max"]  # over the tokens of the text, or the first token's
    normalize: bool  # to length 1
    max_tokens: Annotated[int, Meta(ge=1, le=100_000_000)]  # of a text, special tokens included


class MemoryFacts(msgspec.Struct, frozen=True):
    """Predicted bytes: what loading needs, and what each cached token adds."""

    weight_bytes: ByteCount
    kv_bytes_per_token: ByteCount = 0
    activation_bytes: ByteCount = 0


class Quality(msgspec.Struct, frozen=True):
    """What ``aicc eval`` finds: an artifact against its source at float32, teacher-forced on one text.

    Attributes:
        tokens: Tokens compared.
        kl_mean: Mean KL divergence of the artifact's predictions from the source's, in nats.
        kl_p99: The value that 99 of 100 tokens stay below.
        top1_agreement: Fraction of positions where both find the same token most likely.
        ppl_reference: Perplexity of the source.
        ppl: Perplexity of the artifact.
        text: Name and sha256 of the text.
    """

    tokens: Annotated[int, Meta(ge=1, le=1 << 40)]
    kl_mean: Annotated[float, Meta(ge=-1e-3, le=1e6)]  # rounding can take a zero just below zero
    kl_p99: Annotated[float, Meta(ge=-1e-3, le=1e6)]
    top1_agreement: Annotated[float, Meta(ge=0, le=1)]
    ppl_reference: Annotated[float, Meta(gt=0)]
    ppl: Annotated[float, Meta(gt=0)]
    text: Name


class FileEntry(msgspec.Struct, frozen=True):
    """A file of the artifact. ``path`` is relative and posix, and stays inside."""

    path: str
    bytes: ByteCount
    sha256: Sha256


class Variant(msgspec.Struct, frozen=True):
    """One executable of the model, for one target.

    ``files`` are the paths under ``variants/<name>/`` the provider may open; ``requires`` is the
    provider's own descriptor of the driver or runtime it needs; ``options`` are what the
    executable was compiled with and must be loaded with.
    """

    name: Identifier
    target: TargetName
    files: Annotated[tuple[str, ...], Meta(max_length=_MAX_ITEMS)]
    requires: Facts = {}
    options: Facts = {}

    @property
    def directory(self) -> str:
        """Where its files are, relative to the artifact."""
        return f"variants/{self.name}"

    @property
    def family(self) -> str:
        """The chip family of its target."""
        return self.target.partition(":")[0]


class Manifest(msgspec.Struct, frozen=True):
    """What ``manifest.json`` says. ``files`` are all files but itself and the timings."""

    format: Format
    name: Name  # what servers call the model
    kind: Literal["decoder", "tensors"]
    producer: Facts  # package → version that made it
    source: SourceInfo
    quantization: Name  # what the weights are, e.g. "int4 group 32"
    signatures: Annotated[dict[Name, Signature], Meta(max_length=100)]
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=100)]
    memory: MemoryFacts
    files: Annotated[tuple[FileEntry, ...], Meta(max_length=_MAX_ITEMS)]
    llm: LlmFacts | None = None
    embedding: EmbeddingFacts | None = None
    quality: Quality | None = None


class PassTiming(msgspec.Struct, frozen=True):
    """How long one pass took."""

    name: str
    seconds: float


class PhaseTiming(msgspec.Struct, frozen=True):
    """How long one phase took, and the memory of the process until its end."""

    name: str
    seconds: float
    peak_rss_bytes: int
    passes: list[PassTiming] = []


class CompileTimings(msgspec.Struct, frozen=True):
    """What is measured of a compile rather than decided by it: the part of the report that changes every run."""

    phases: list[PhaseTiming] = []


class _Head(msgspec.Struct):
    """As much of a manifest as every major version has."""

    format: Format


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: indented, keys of maps sorted, its own digest last."""
    encoded = msgspec.json.encode(manifest, order="deterministic")
    body = msgspec.json.format(encoded, indent=2).removesuffix(b"\n}")
    return body + _seal(body)


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Parse and check a manifest without looking at the files it lists.

    Args:
        data: Content of ``manifest.json``.
        path: Where it was read, for messages.

    Raises:
        MismatchError: Another major version of the format.
        IntegrityError: Malformed, changed after it was written, absurd or inconsistent.
    """
    major = decode_json(data, path, _Head).format.major
    if major != FORMAT_MAJOR:
        raise MismatchError(
            f"{path} is of format {major}, and this aicc reads format {FORMAT_MAJOR}.",
            "Upgrade aicc (pip install --upgrade aicc)." if major > FORMAT_MAJOR else "Compile the model again.",
        )
    length = len(_seal(b""))
    if data[-length:] != _seal(data[:-length]):
        raise damaged(path, "its content does not match the digest at its end, so it was changed or cut short")
    manifest = decode_json(data, path, Manifest)
    for problem in _inconsistencies(manifest):
        raise damaged(path, problem)
    return manifest


def _seal(body: bytes) -> bytes:
    """The last lines of a manifest, which hold the sha256 of everything before them."""
    return b',\n  "digest": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """What is wrong between fields, in words that name them."""
    yield from _wrong_paths(manifest)
    for key, signature in manifest.signatures.items():
        for role, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            if len({spec.name for spec in specs}) < len(specs):
                yield f"signatures.{key}.{role}: two tensors have the same name"
    stored = sum(entry.bytes for entry in manifest.files)
    weights = manifest.memory.weight_bytes
    if weights > stored * _MAX_EXPANSION:
        yield f"memory.weight_bytes is {weights}, which {stored} bytes of files cannot hold"
    if (manifest.llm is not None) != (manifest.kind == "decoder"):
        yield f"llm: decoders have it and nothing else does, and kind is {manifest.kind}"
    if manifest.embedding is not None and manifest.kind == "decoder":
        yield "embedding: encoders have it, and kind is decoder"
    if manifest.llm is not None:
        yield from _wrong_facts(manifest.llm, manifest.memory, stored)


def _wrong_paths(manifest: Manifest) -> Iterator[str]:
    seen: set[str] = set()
    for i, entry in enumerate(manifest.files):
        path = entry.path
        if len(path) > 500 or not _SAFE_PATH.fullmatch(path):
            yield f"files[{i}].path {path[:200]!r} is not a plain relative path inside the artifact"
        if path in (MANIFEST_NAME, TIMINGS_PATH):
            yield f"files[{i}].path: {path} cannot be listed"
        if path.lower() in seen:
            yield f"files[{i}].path: {path} is there twice (upper and lower case count as equal)"
        seen.add(path.lower())
    listed = {entry.path for entry in manifest.files}
    names: set[str] = set()
    for i, variant in enumerate(manifest.variants):
        if variant.name.lower() in names:
            yield f"variants[{i}].name: there are two variants {variant.name}"
        names.add(variant.name.lower())
        for file in variant.files:
            if f"{variant.directory}/{file}" not in listed:
                yield f"variants[{i}].files: {file[:200]!r} is not among the files"


def _wrong_facts(llm: LlmFacts, memory: MemoryFacts, stored: int) -> Iterator[str]:
    if llm.weight_bytes_per_token > stored * _MAX_EXPANSION:
        yield f"llm.weight_bytes_per_token is {llm.weight_bytes_per_token}, which {stored} bytes of files cannot hold"
    widest = 2 * 8 * llm.layers * llm.kv_heads * llm.head_dim  # keys and values, 8 bytes each
    if memory.kv_bytes_per_token > widest:
        yield f"memory.kv_bytes_per_token is {memory.kv_bytes_per_token}, over the {widest} of llm's layers and heads"
    for token in llm.eos_token_ids:
        if token >= llm.vocab_size:
            yield f"llm.eos_token_ids: {token} is not below vocab_size {llm.vocab_size}"
    if llm.bos_token_id is not None and llm.bos_token_id >= llm.vocab_size:
        yield f"llm.bos_token_id: {llm.bos_token_id} is not below vocab_size {llm.vocab_size}"
    if llm.add_bos and llm.bos_token_id is None:
        yield "llm.add_bos asks for a bos_token_id, and there is none"


_T = TypeVar("_T")


def decode_json(data: bytes, path: Path, kind: type[_T]) -> _T:
    """Parse JSON of a type; ``path`` is for messages.

    Raises:
        IntegrityError: It is not JSON, or not of that type; the field is named.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at ")
        field = where.replace("`", "").replace("$.", "").replace("$", "the document")
        raise damaged(path, f"{field or 'the document'}: {problem}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, f"it is not JSON: {error}") from error


def damaged(path: Path, problem: str) -> IntegrityError:
    """The error for a file of an artifact that is not as it must be."""
    return IntegrityError(f"{path}: {problem}.", "Copy the artifact again, or compile it again.")
