"""Miniature GGUF files, written with the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType

ARCHITECTURES = {  # miniature of tests/importers/miniatures.py → GGUF's name, sizes that quantised blocks divide
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
}
SIZES = {"hidden_size": 96, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 6, "vocab_size": 64}


def write_gguf(
    path: Path,
    model: torch.nn.Module,
    arch: str,
    kind: GgmlType = GgmlType.F32,
    tokens: list[str] | None = None,
    extra: dict[str, object] | None = None,
) -> Path:
    """Write a transformers model as GGUF.

    Args:
        path: File to write.
        model: A miniature.
        arch: GGUF's name of its architecture.
        kind: Number format of the matrices; norms and biases stay float32.
        tokens: Byte-level BPE vocabulary; none leaves the tokenizer out.
        extra: More metadata, without the architecture's prefix: whole numbers, floats and texts.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * rope.get("partial_rotary_factor", 1.0)))
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            writer.add_float32(f"{arch}.{key}", getattr(config, key))
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    for key, value in (extra or {}).items():
        add = {float: writer.add_float32, str: writer.add_string, int: writer.add_uint32}[type(value)]
        add(f"{arch}.{key}", value)
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * len(tokens))
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(2)
    for name, values in _tensors(model, arch):
        matrix = values.ndim == 2 and kind != GgmlType.F32
        data = gguf.quants.quantize(values, kind) if matrix else values
        writer.add_tensor(name, data, raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: torch.nn.Module, arch: str) -> list[tuple[str, np.ndarray]]:
    config = model.config
    number = {name: index for index, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found = []
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.detach().numpy()
        if arch == "llama" and ".q_proj." in name:
            values = _paired(values, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            values = _paired(values, config.num_key_value_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        found.append(
            ("rope_freqs.weight" if named == "rope_freqs" else named, np.ascontiguousarray(values, np.float32))
        )
    return found


def _paired(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of Q and K rows: the two halves of a head interleaved."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
