"""Imports GGUF: the graph from mobius, the weights as the file has them.

Quantised matrices keep their integers (:mod:`aicc.compiler.importers.gguf_blocks`) wherever they
enter the graph whole or with their rows reordered; anything else becomes lazy float32.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType as GgmlType

from aicc.compiler.importers import ImportedModel, Source
from aicc.compiler.importers.gguf_blocks import FORMATS, block_tensors
from aicc.compiler.importers.gguf_file import GgufFile, GgufTensor, read_gguf
from aicc.compiler.importers.gguf_models import Architecture, find_architecture, hf_config, hf_name
from aicc.compiler.importers.gguf_tokenizer import end_token_ids, token_id, tokenizer_json
from aicc.compiler.importers.lazy import LazyWeight, row_selection
from aicc.compiler.importers.mobius_graph import NO_END, BuiltGraph, bind_weights, build_graph
from aicc.compiler.quantization.blockwise import add_blockwise
from aicc.runtime.artifact import LlmFacts, SourceInfo
from aicc.runtime.errors import IntegrityError, UnsupportedError

_FLOATS = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}
_ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: what each frequency is divided by


def import_model(source: Source) -> ImportedModel:
    """Import a GGUF decoder; no tensor is read.

    Raises:
        IntegrityError: The file contradicts itself.
        UnsupportedError: Its architecture, tokenizer or number format is not known.
    """
    file = read_gguf(source.path)
    where = str(source.path)
    arch, row = find_architecture(file)
    config = hf_config(file, arch, row)
    built = build_graph(config, where)
    notes = built.notes
    kept: Counter[str] = Counter()
    bind_weights(built, _weights(file, row, config, notes), where, _Blocks(kept, notes))
    if _ROPE_FACTORS in file.tensors:
        _divide_frequencies(
            built, _float_values(file.tensors[_ROPE_FACTORS]), config.rope_parameters["rope_theta"], where
        )
    notes += [f"matrices read as the {kind} integers they are: {count}" for kind, count in kept.items()]
    facts = _facts(file, built)
    if not facts.eos_token_ids:
        notes.append(NO_END)
    return ImportedModel(
        graph=built.model,
        kind="decoder",
        info=SourceInfo(
            source.name, "gguf", "", source.revision, source.licence or file.metadata.get("general.license", "")
        ),
        llm=facts,
        tokenizer_json=tokenizer_json(file.metadata, where),
        chat_template=file.metadata.get("tokenizer.chat_template"),
        tokenizer_config=_special_tokens(file),
        notes=notes,
        weight_files=[source.path],
    )


def _weights(file: GgufFile, row: Architecture, config: Any, notes: list[str]) -> dict[str, torch.Tensor]:
    """Every tensor under its Hugging Face name, as the Hugging Face model has it, lazy."""
    weights: dict[str, torch.Tensor] = {}
    unknown = [name for name in file.tensors if name != _ROPE_FACTORS and hf_name(row, name) is None]
    if unknown:
        raise UnsupportedError(
            f"{file.path}: {len(unknown)} tensors are not of a {row.model_type} model: {', '.join(unknown[:4])}.",
            "Use the model's Hugging Face folder instead.",
        )
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        published = hf_name(row, name)
        weight: torch.Tensor = _lazy(tensor)
        if row.paired_rope and ("attn_q." in name or "attn_k." in name):
            heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
            weight = _unpair(weight, heads, tensor, file)
        if row.norm_offset and "norm" in name:
            weight = weight - row.norm_offset
        weights[published] = weight
        if tensor.type not in _FLOATS and tensor.type not in FORMATS:
            notes.append(f"{name} ({tensor.type.name}) is dequantised: this format has no exact integer form here")
    return weights


def _lazy(tensor: GgufTensor) -> LazyWeight:
    return LazyWeight.from_file(tensor.shape, _FLOATS.get(tensor.type, torch.float32), lambda: _values(tensor), tensor)


def _values(tensor: GgufTensor) -> torch.Tensor:
    """Read a tensor: floats as stored, anything else dequantised to float32."""
    if tensor.type in _FLOATS:
        with warnings.catch_warnings():  # torch has no read-only tensors and says so; nothing here writes to it
            warnings.simplefilter("ignore")
            return torch.frombuffer(tensor.data, dtype=_FLOATS[tensor.type]).reshape(tensor.shape)
    return torch.from_numpy(quants.dequantize(tensor.blocks(), tensor.type).reshape(tensor.shape))


def _float_values(tensor: GgufTensor) -> np.ndarray:
    return _values(tensor).to(torch.float64).numpy()


def _unpair(weight: torch.Tensor, heads: int, tensor: GgufTensor, file: GgufFile) -> torch.Tensor:
    """Undo llama.cpp's order of Q and K rows: (pair, half) within a head back to (half, pair)."""
    rows = weight.shape[0]
    if rows % (2 * heads):
        raise IntegrityError(f"{file.path}: {tensor.name!r} has {rows} rows for {heads} heads.", "The file is damaged.")
    grouped = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return grouped.transpose(1, 2).reshape(weight.shape)


class _Blocks:
    """Puts quantised matrices into the graph as integers; counts them for the report."""

    def __init__(self, kept: Counter[str], notes: list[str]) -> None:
        self.kept, self.notes = kept, notes

    def __call__(self, graph: ir.Graph, name: str, weight: torch.Tensor) -> ir.Value | None:
        found = row_selection(weight)
        tensor = found[0].origin if found else None
        if tensor is None or tensor.type not in FORMATS:
            if found is None:
                self.notes.append(f"{name} is dequantised: the model needs it in another order than whole rows")
            return None
        parts = block_tensors(tensor.blocks(), tensor.type, found[1])
        self.kept[tensor.type.name] += 1
        return add_blockwise(graph, name, parts.values, parts.scales, parts.group, minimum=parts.minimum)


def _divide_frequencies(built: BuiltGraph, factors: np.ndarray, theta: float, where: str) -> None:
    """Recompute the rotary tables with each frequency divided by its factor, in float64."""
    half = built.config.head_dim // 2
    if factors.shape != (half,) or not np.all(factors > 0):
        raise IntegrityError(f"{where}: {_ROPE_FACTORS} must hold {half} positive numbers.", "The file is damaged.")
    frequencies = theta ** (-np.arange(half) / half) / factors
    angles = np.outer(np.arange(built.config.max_position_embeddings), frequencies)
    for name, value in built.model.graph.initializers.items():
        if name.endswith((".cos_cache", ".sin_cache")):
            table = np.cos(angles) if name.endswith(".cos_cache") else np.sin(angles)
            value.const_value = ir.Tensor(table.astype(np.float32), name=name)


def _facts(file: GgufFile, built: BuiltGraph) -> LlmFacts:
    config, tokens = built.config, file.metadata.get("tokenizer.ggml.tokens") or []
    bos = token_id(file.metadata, "bos", len(tokens))
    return LlmFacts(
        context_length=built.context_length,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eos_token_ids=end_token_ids(file.metadata),
        bos_token_id=bos,
        add_bos=bos is not None and bool(file.metadata.get("tokenizer.ggml.add_bos_token", False)),
    )


def _special_tokens(file: GgufFile) -> dict[str, str]:
    """Texts of the tokens a chat template may name."""
    tokens = file.metadata.get("tokenizer.ggml.tokens") or []
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {name: token_id(file.metadata, key, len(tokens)) for key, name in names.items()}
    return {name: tokens[index] for name, index in found.items() if index is not None}
