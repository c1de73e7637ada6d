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
from pathlib import Path
from typing import Literal

import msgspec
import onnx_ir as ir

from aicc.runtime.artifact import LlmFacts, SourceInfo
from aicc.runtime.errors import UnsupportedError, UsageError

SourceKind = Literal["gguf", "huggingface", "onnx"]
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


@dataclass(slots=True)
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
        tokenizer_json: A ``tokenizers`` file's text, None if the model has no tokenizer.
        chat_template: Jinja text, None if there is none.
        tokenizer_config: Values the chat template may use (``bos_token``, ``eos_token``, …).
        notes: What the importer had to decide, for the report.
        weight_files: Files that hold the weights, in name order.
    """

    graph: ir.Model
    kind: Literal["decoder", "tensors"]
    info: SourceInfo
    llm: LlmFacts | None = None
    tokenizer_json: str | None = None
    chat_template: str | None = None
    tokenizer_config: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    weight_files: list[Path] = field(default_factory=list)


Importer = Callable[[Source], ImportedModel]

_MODULES = {"gguf": "gguf", "huggingface": "huggingface", "onnx": "onnx_file"}


def import_model(source: Source, importer: str = "auto", digest: bool = True) -> ImportedModel:
    """Import a model with the importer its kind asks for.

    Args:
        source: From :func:`aicc.compiler.sources.resolve`.
        importer: ``auto``, or ``mobius`` for Hugging Face and GGUF models. ``optimum`` gives no graph,
            see :mod:`aicc.compiler.importers.optimum`.
        digest: Hash the weight files for ``info.sha256``; without it nothing but headers is read.

    Raises:
        UsageError: There is no such importer.
        UnsupportedError: The model cannot be imported.
        IntegrityError: Its files contradict themselves.
    """
    if importer == "optimum":
        raise UnsupportedError(
            "the optimum importer gives OpenVINO IR, not a graph, and serves the openvino family only.",
            "Choose an openvino target, or leave --importer out.",
        )
    if importer == "mobius" and source.kind == "onnx":
        raise UsageError(f"{source.name} is an ONNX file, which is read as it is.", "Leave --importer out.")
    if importer not in IMPORTERS:
        raise UsageError(f"there is no importer {importer!r}.", f"Choose one of {', '.join(IMPORTERS)}.")
    module = importlib.import_module(f"aicc.compiler.importers.{_MODULES[source.kind]}")
    imported: ImportedModel = module.import_model(source)
    if digest:
        imported.info = msgspec.structs.replace(imported.info, sha256=sha256_of(imported.weight_files))
    return imported


def sha256_of(paths: list[Path]) -> str:
    """One hash over the content of several files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
