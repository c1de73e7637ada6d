"""Importers: from a model as it is published to the intermediate graph.

Each importer is one file with one function, ``import_model(source) -> ImportedModel``. Weights
stay where they are: every large initializer is lazy or mapped, and is read when it is written
out. Quantised sources keep their integers: the graph then holds the block-wise
``DequantizeLinear`` form that :mod:`aicc.compiler.quantization.blockwise` builds and matches.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import onnx_ir as ir

from aicc.runtime.artifact import EmbeddingFacts, LlmFacts, SourceInfo
from aicc.runtime.errors import UnsupportedError, UsageError
from aicc.runtime.target import Target

SourceKind = Literal["gguf", "huggingface", "onnx"]
Progress = Callable[[str], None]
IMPORTERS = ("auto", "mobius", "optimum")


@dataclass(frozen=True, slots=True)
class Source:
    """A model found on this machine.

    Attributes:
        path: The ``.gguf`` or ``.onnx`` file, or the Hugging Face folder.
        kind: What its content says it is (never its extension).
        name: What the user called it.
        revision: Package or hub revision, empty for plain files.
        licence: SPDX name when known.
    """

    path: Path
    kind: SourceKind
    name: str
    revision: str = ""
    licence: str = ""


@dataclass(slots=True, weakref_slot=True)
class ImportedModel:
    """What every importer gives.

    Attributes:
        graph: Standard ONNX operators, weights lazy. A decoder has inputs ``input_ids``
            ``[batch, sequence]``, ``attention_mask`` ``[batch, past + sequence]``,
            ``position_ids`` ``[batch, sequence]``, ``past_key_values.<i>.key/value``
            ``[batch, kv_heads, past, head_dim]`` and outputs ``logits``
            ``[batch, sequence, vocab]``, ``present.<i>.key/value``.
        kind: ``decoder`` generates tokens; anything else maps tensors to tensors.
        info: Where it came from.
        llm: Facts about a decoder, None for tensors.
        contexts: Tokens of context a decoder is made for on targets of fixed shapes, rising; the last is that of
            ``llm``. Empty elsewhere.
        embedding: How an encoder makes one vector of a text, None if its source does not say.
        tokenizer_json: A ``tokenizers`` file's text, None if the model has no tokenizer.
        chat_template: Jinja text, None if there is none.
        tokenizer_config: Values the chat template may use (``bos_token``, ``eos_token``, …).
        notes: What the importer had to decide, for the report.
        weight_files: Files that hold the weights, in name order.
        importer: ``mobius``, ``onnx`` or ``optimum``.
        packages: What the importer is made of, package → version.
        exported: The ``.xml`` of a model that came as OpenVINO IR. ``graph`` then describes it in
            OpenVINO's own operators, and a decoder's KV cache is its state.
    """

    graph: ir.Model
    kind: Literal["decoder", "tensors"]
    info: SourceInfo
    llm: LlmFacts | None = None
    contexts: tuple[int, ...] = ()
    embedding: EmbeddingFacts | None = None
    tokenizer_json: str | None = None
    chat_template: str | None = None
    tokenizer_config: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    weight_files: list[Path] = field(default_factory=list)
    importer: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    exported: Path | None = None


class ArchitectureError(UnsupportedError):
    """An importer does not know the model's architecture; another may."""


_MODULES = {"gguf": "gguf", "huggingface": "huggingface", "onnx": "onnx_file"}


def import_model(
    source: Source,
    importer: str = "auto",
    digest: bool = True,
    *,
    target: Target | None = None,
    progress: Progress = lambda line: None,
) -> ImportedModel:
    """Import a model with the importer its kind asks for.

    Args:
        source: From :func:`aicc.compiler.sources.resolve`.
        importer: ``mobius`` for Hugging Face folders and GGUF, ``optimum`` for Hugging Face folders;
            ``auto`` takes optimum for folders of an architecture mobius does not know.
        digest: Hash the weight files for ``info.sha256``.
        target: What it is imported for; None if any will do.
        progress: Called with one line for each step that takes minutes.

    Raises:
        UsageError: There is no such importer, or it does not read this kind of source.
        UnsupportedError: The model cannot be imported, or not for this target.
        IntegrityError: Its files contradict themselves.
    """
    imported = _import(source, importer, target, progress, preview=False)
    if digest:
        imported.info = msgspec.structs.replace(imported.info, sha256=sha256_of(imported.weight_files))
    return imported


def preview_model(source: Source, importer: str = "auto", target: Target | None = None) -> ImportedModel:
    """What :func:`import_model` would give, as far as headers tell: no weight is read, nothing exported.

    Args:
        source: From :func:`aicc.compiler.sources.resolve`.
        importer: As for an import.
        target: As for an import.

    Raises:
        AiccError: As an import would.
    """
    return _import(source, importer, target, lambda line: None, preview=True)


def _import(source: Source, importer: str, target: Target | None, progress: Progress, preview: bool) -> ImportedModel:
    if importer not in IMPORTERS:
        raise UsageError(f"there is no importer {importer!r}.", f"Choose one of {', '.join(IMPORTERS)}.")
    if importer == "mobius" and source.kind == "onnx":
        raise UsageError(f"{source.name} is an ONNX file, which is read as it is.", "Leave --importer out.")
    if importer == "optimum":
        return _through_optimum(source, target, progress, preview)
    module = importlib.import_module(f"aicc.compiler.importers.{_MODULES[source.kind]}")
    try:
        imported: ImportedModel = module.import_model(source)
    except ArchitectureError as unknown:
        if importer == "mobius":
            raise
        return _through_optimum(source, target, progress, preview, unknown)
    if source.kind == "onnx":
        imported.importer = "onnx"
    else:
        imported.importer, imported.packages = "mobius", {"mobius-onnx": metadata.version("mobius-onnx")}
    return imported


def _through_optimum(
    source: Source, target: Target | None, progress: Progress, preview: bool, unknown: ArchitectureError | None = None
) -> ImportedModel:
    """Import with optimum-intel, on request or because the first importer does not know the architecture.

    Raises:
        UnsupportedError: It does not know it either, or what it exports is not for the target.
    """
    from aicc.compiler.importers import optimum

    try:
        model_type = optimum.check_exportable(source)
    except ArchitectureError as error:
        if unknown is None:
            raise
        raise UnsupportedError(f"{unknown.message} Nor by the other: {error.message}", error.remedy) from error
    if target is not None and optimum.DOMAIN not in target.graph_domains:
        what = unknown.message if unknown else f"{target.name} cannot run what optimum-intel exports, OpenVINO IR."
        raise UnsupportedError(
            what,
            "The other importer, optimum-intel, exports it for the openvino family alone: --target openvino:cpu"
            if unknown
            else "Choose an openvino target, or leave --importer out.",
        )
    if unknown:
        progress(f"mobius does not know this {model_type} model: taking optimum-intel")
    imported = optimum.preview(source) if preview else optimum.import_model(source, progress)
    imported.importer, imported.packages = "optimum", {"optimum-intel": optimum.VERSION}
    if unknown:
        imported.notes.insert(0, f"mobius does not know this {model_type} model, so optimum-intel imported it")
    return imported


def sha256_of(paths: list[Path]) -> str:
    """One hash over the content of several files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
