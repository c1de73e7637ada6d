"""Imports Hugging Face folders: config.json through mobius, safetensors lazily, the tokenizer as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aicc.compiler.importers import ImportedModel, Source
from aicc.compiler.importers.corrections import position_offset
from aicc.compiler.importers.files import read_json, read_text, read_tokenizer
from aicc.compiler.importers.mobius_graph import (
    LIMITS,
    NO_END,
    BuiltGraph,
    bind_weights,
    build_graph,
    check_limits,
    make_config,
)
from aicc.compiler.importers.safetensors_file import read_weights, weight_files
from aicc.runtime.artifact import LlmFacts, SourceInfo
from aicc.runtime.errors import UnsupportedError

# Architectures whose graphs are compared with transformers' own forward pass in the tests. mobius
# accepts more names than it computes faithfully, so no other is taken on trust.
DECODERS = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 granite olmo2 smollm3 starcoder2".split()  # noqa: SIM905
)
ENCODERS = frozenset({"bert", "distilbert", "roberta", "xlm-roberta"})

_HELPERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # buffers old checkpoints saved along
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


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
    config = _config(raw, folder, where)
    built = build_graph(config, where)
    files = weight_files(folder)
    weights: dict[str, torch.Tensor] = dict(read_weights(files))
    notes = _adapt(weights, config, built)
    bind_weights(built, weights, str(folder), ignorable=lambda name: _may_stay_unused(name, built))
    tokenizer = read_tokenizer(folder)
    tokenizer_config = _optional_json(folder / "tokenizer_config.json")
    decoder = config.model_type in DECODERS
    facts = _facts(raw, folder, built, tokenizer) if decoder else None
    notes += _pooling_notes(folder)
    if facts is not None and not facts.eos_token_ids:
        notes.append(NO_END)
    return ImportedModel(
        graph=built.model,
        kind="decoder" if decoder else "tensors",
        info=SourceInfo(source.name, "huggingface", "", source.revision, source.licence),
        llm=facts,
        tokenizer_json=tokenizer,
        chat_template=_chat_template(folder, tokenizer_config),
        tokenizer_config=_special_tokens(tokenizer_config),
        notes=notes,
        weight_files=files,
    )


def _check_supported(raw: dict[str, Any], where: str) -> None:
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if not isinstance(model_type, str) or model_type not in DECODERS | ENCODERS:
        raise UnsupportedError(
            f"{where}: models of type {model_type!r} are not supported by this importer; known: "
            f"{', '.join(sorted(DECODERS | ENCODERS))}.",
            "For an openvino target use the other importer: --importer optimum",
        )
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    expected = "ForCausalLM" if model_type in DECODERS else "Model"
    if named and not named.endswith(expected):
        raise UnsupportedError(
            f"{where}: {named!r} is not supported; of {model_type} models, those that end in {expected} are.",
            "Export the model to ONNX and give that file.",
        )
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedError(
            f"{where}: the weights are already quantised ({method}).",
            "Give the model with its float weights, or its GGUF form; aicc quantises by itself.",
        )


def _config(raw: dict[str, Any], folder: Path, where: str) -> Any:
    """The transformers config, its sizes checked; no code of the model's is run."""
    import transformers

    check_limits(where, [(key, key, raw.get(key)) for key in LIMITS])
    load = transformers.AutoConfig.from_pretrained
    config = make_config(lambda: load(folder, trust_remote_code=False, local_files_only=True), where)
    check_limits(where, [(key, key, getattr(config, key, None)) for key in LIMITS])
    return config


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


def _facts(raw: dict[str, Any], folder: Path, built: BuiltGraph, tokenizer: str | None) -> LlmFacts:
    config = built.config
    generation = _optional_json(folder / "generation_config.json")
    ends = _ids(generation.get("eos_token_id")) + _ids(raw.get("eos_token_id"))
    bos = next(iter(_ids(raw.get("bos_token_id"))), None)
    add_bos = False
    if tokenizer is not None and bos is not None:
        from tokenizers import Tokenizer

        add_bos = Tokenizer.from_str(tokenizer).encode("a").ids[:1] == [bos]
    return LlmFacts(
        context_length=built.context_length,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eos_token_ids=tuple(dict.fromkeys(index for index in ends if index < config.vocab_size)),
        bos_token_id=bos,
        add_bos=add_bos,
    )


def _ids(value: Any) -> list[int]:
    """Token ids of a config value: one, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item >= 0]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The folder's own file, else what the tokenizer's config holds (one template, or several by name)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in _TOKEN_NAMES:
        token = tokenizer_config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _pooling_notes(folder: Path) -> list[str]:
    """What a sentence-transformers folder does after the graph: pooling, perhaps normalisation."""
    pooling = _optional_json(folder / "1_Pooling" / "config.json")
    modes = [
        key.removeprefix("pooling_mode_") for key, value in pooling.items() if key.startswith("pooling_mode_") and value
    ]
    return [f"sentence embedding: pool the last hidden state by {', '.join(modes)}"] if modes else []
