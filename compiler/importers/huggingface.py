"""Imports Hugging Face folders: config.json through mobius, safetensors lazily, the tokenizer as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from aicc.compiler.importers import ArchitectureError, ImportedModel, Source
from aicc.compiler.importers.corrections import position_offset
from aicc.compiler.importers.files import read_json
from aicc.compiler.importers.folder import FolderFacts, read_config, read_folder, refuse_quantised
from aicc.compiler.importers.mobius_graph import NO_END, BuiltGraph, bind_weights, build_graph
from aicc.compiler.importers.safetensors_file import read_weights, weight_files
from aicc.runtime.artifact import LlmFacts, SourceInfo
from aicc.runtime.errors import UsageError

# Architectures whose graphs are compared with transformers' own forward pass in the tests. mobius
# accepts more names than it computes faithfully, so no other is taken on trust.
DECODERS = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 granite olmo2 smollm3 starcoder2".split()  # noqa: SIM905
)
ENCODERS = frozenset({"bert", "distilbert", "roberta", "xlm-roberta"})

_HELPERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # buffers old checkpoints saved along


def import_model(source: Source) -> ImportedModel:
    """Import a Hugging Face folder; no weight is read.

    Raises:
        IntegrityError: A file of the folder contradicts itself or another.
        UnsupportedError: The architecture, or this form of it, is not known.
    """
    folder = source.path
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    _check_supported(raw, where)
    config = read_config(raw, folder)
    built = build_graph(config, where)
    files = weight_files(folder)
    weights: dict[str, torch.Tensor] = dict(read_weights(files))
    notes = _adapt(weights, config, built)
    bind_weights(built, weights, str(folder), ignorable=lambda name: _may_stay_unused(name, built))
    beside = read_folder(folder, raw)
    decoder = config.model_type in DECODERS
    facts = _facts(built, beside) if decoder else None
    notes += beside.notes
    if facts is not None and not facts.eos_token_ids:
        notes.append(NO_END)
    return ImportedModel(
        graph=built.model,
        kind="decoder" if decoder else "tensors",
        info=SourceInfo(source.name, "huggingface", "", source.revision, source.licence),
        llm=facts,
        embedding=None if decoder else beside.embedding,
        tokenizer_json=beside.tokenizer_json,
        chat_template=beside.chat_template,
        tokenizer_config=beside.tokenizer_config,
        notes=notes,
        weight_files=files,
    )


def import_config(folder: Path, name: str) -> ImportedModel:
    """What :func:`import_model` would give of a folder whose weights are not there: the graph and its sizes.

    Every weight has its type and shape, and refuses to be read.

    Raises:
        IntegrityError: The config contradicts itself.
        UnsupportedError: The architecture, or this form of it, is not known.
    """
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    _check_supported(raw, where)
    built = build_graph(read_config(raw, folder), where)
    for weight in built.model.graph.initializers.values():
        if weight.const_value is None:
            assert weight.dtype is not None
            weight.const_value = ir.LazyTensor(_absent, dtype=weight.dtype, shape=weight.shape, name=weight.name)
    decoder = raw["model_type"] in DECODERS
    return ImportedModel(
        graph=built.model,
        kind="decoder" if decoder else "tensors",
        info=SourceInfo(name, "huggingface", ""),
        llm=_facts(built, read_folder(folder, raw)) if decoder else None,
        notes=[*built.notes, "only config.json was read: there are no weights beside it"],
        importer="mobius",
    )


def _absent() -> ir.TensorProtocol:
    raise UsageError("this needs the model's weights, and only its config.json is here.", "Give the whole folder.")


def _check_supported(raw: dict[str, Any], where: str) -> None:
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if not isinstance(model_type, str) or model_type not in DECODERS | ENCODERS:
        raise ArchitectureError(
            f"{where}: models of type {model_type!r} are not supported by this importer; known: "
            f"{', '.join(sorted(DECODERS | ENCODERS))}.",
            "For an openvino target use the other importer: --importer optimum",
        )
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    expected = "ForCausalLM" if model_type in DECODERS else "Model"
    if named and not named.endswith(expected):
        raise ArchitectureError(
            f"{where}: {named!r} is not supported by this importer; of {model_type} models, those that end in "
            f"{expected} are.",
            "For an openvino target use the other importer: --importer optimum",
        )
    refuse_quantised(raw, where)


def _adapt(weights: dict[str, torch.Tensor], config: Any, built: BuiltGraph) -> list[str]:
    """Fit published weights to the graph where the two differ; returns what the user should know."""
    notes = list(built.notes)
    offset = position_offset(config)
    for name in list(weights):
        if offset and name.endswith("embeddings.position_embeddings.weight"):
            weights[name] = weights[name][offset:]
        if built.task == "feature-extraction" and "pooler." in name:
            notes.append(f"{name} is left out: the graph gives the last hidden state, before the pooler")
    if offset:
        notes.append("positions are counted from the first token: put padding behind the text, not before it")
    return notes


def _may_stay_unused(name: str, built: BuiltGraph) -> bool:
    """Whether a published weight is known to have no place in the graph."""
    return name.endswith(_HELPERS) or (name == "lm_head.weight" and bool(built.config.tie_word_embeddings))


def _facts(built: BuiltGraph, beside: FolderFacts) -> LlmFacts:
    config = built.config
    return LlmFacts(
        context_length=built.context_length,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eos_token_ids=tuple(index for index in beside.eos_token_ids if index < config.vocab_size),
        bos_token_id=beside.bos_token_id,
        add_bos=beside.add_bos,
    )
