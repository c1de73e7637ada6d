"""What llama.cpp's converter does to each architecture, so that it can be undone.

One row an architecture: the names of its config values and tensors in GGUF, and the ones of the
Hugging Face model they were made from. Written after llama.cpp's ``convert_hf_to_gguf.py``; each
row is tested against the Hugging Face model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aicc.compiler.importers.gguf_file import GgufFile
from aicc.compiler.importers.mobius_graph import check_limits, make_config
from aicc.runtime.errors import IntegrityError, UnsupportedError

_LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "blk.#.attn_q": "model.layers.#.self_attn.q_proj",
    "blk.#.attn_k": "model.layers.#.self_attn.k_proj",
    "blk.#.attn_v": "model.layers.#.self_attn.v_proj",
    "blk.#.attn_output": "model.layers.#.self_attn.o_proj",
    "blk.#.attn_norm": "model.layers.#.input_layernorm",
    "blk.#.ffn_gate": "model.layers.#.mlp.gate_proj",
    "blk.#.ffn_up": "model.layers.#.mlp.up_proj",
    "blk.#.ffn_down": "model.layers.#.mlp.down_proj",
    "blk.#.ffn_norm": "model.layers.#.post_attention_layernorm",
}
_HEAD_NORMS = {
    "blk.#.attn_q_norm": "model.layers.#.self_attn.q_norm",
    "blk.#.attn_k_norm": "model.layers.#.self_attn.k_norm",
}
_GEMMA_TENSORS = _LLAMA_TENSORS | {
    "blk.#.post_attention_norm": "model.layers.#.post_attention_layernorm",
    "blk.#.ffn_norm": "model.layers.#.pre_feedforward_layernorm",
    "blk.#.post_ffw_norm": "model.layers.#.post_feedforward_layernorm",
}
_PHI3_TENSORS = {
    name: target
    for name, target in _LLAMA_TENSORS.items()
    if name not in ("blk.#.attn_q", "blk.#.attn_k", "blk.#.attn_v")
} | {
    "blk.#.attn_qkv": "model.layers.#.self_attn.qkv_proj",
    "blk.#.ffn_up": "model.layers.#.mlp.gate_up_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row.

    Attributes:
        model_type: Of the Hugging Face config.
        tensors: GGUF name without its suffix → Hugging Face name; ``#`` stands for the layer.
        paired_rope: Rows of Q and K were reordered so that rotated pairs are neighbours.
        norm_offset: Was added to every norm's weight (the model computes with ``1 + weight``).
    """

    model_type: str
    tensors: Mapping[str, str]
    paired_rope: bool = False
    norm_offset: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA_TENSORS, paired_rope=True),
    "qwen2": Architecture("qwen2", _LLAMA_TENSORS),
    "qwen3": Architecture("qwen3", _LLAMA_TENSORS | _HEAD_NORMS),
    "gemma2": Architecture("gemma2", _GEMMA_TENSORS, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", _GEMMA_TENSORS | _HEAD_NORMS, norm_offset=1.0),
    "phi3": Architecture("phi3", _PHI3_TENSORS),
}

# GGUF key without the architecture → config value, and whether every file has it.
_SIZES = {
    "block_count": ("num_hidden_layers", True),
    "embedding_length": ("hidden_size", True),
    "feed_forward_length": ("intermediate_size", True),
    "attention.head_count": ("num_attention_heads", True),
    "attention.head_count_kv": ("num_key_value_heads", False),
    "attention.key_length": ("head_dim", False),
    "context_length": ("max_position_embeddings", True),
    "vocab_size": ("vocab_size", False),
    "attention.sliding_window": ("sliding_window", False),
}
_NUMBERS = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", 0.0, 0.1),
    "rope.freq_base": ("rope_theta", 1.0, 1e12),
    "attn_logit_softcapping": ("attn_logit_softcapping", 0.0, 1e6),
    "final_logit_softcapping": ("final_logit_softcapping", 0.0, 1e6),
}
_REFUSED = {
    "expert_count": "is a mixture of experts",
    "split.count": "is one part of a split file; join the parts first: llama-gguf-split --merge",
    "attention.q_lora_rank": "compresses its attention (MLA)",
}


def find_architecture(file: GgufFile) -> tuple[str, Architecture]:
    """GGUF's name of the architecture and its row.

    Raises:
        UnsupportedError: Not in the table, or a form of it that is not.
    """
    name = file.metadata.get("general.architecture")
    row = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if row is None:
        raise UnsupportedError(
            f"{file.path}: GGUF models of architecture {name!r} are not supported; known: {', '.join(ARCHITECTURES)}.",
            "Use the model's Hugging Face folder instead.",
        )
    for key, what in _REFUSED.items():
        if not (_is_zero(file.metadata.get(f"{name}.{key}", 0)) and _is_zero(file.metadata.get(key, 0))):
            raise UnsupportedError(f"{file.path} {what}, which is not supported here.")
    return name, row


def _is_zero(value: Any) -> bool:
    return isinstance(value, int) and value == 0


def hf_config(file: GgufFile, arch: str, row: Architecture) -> Any:
    """The transformers config the model was converted from.

    Raises:
        IntegrityError: A value is missing or absurd; the key is named.
        UnsupportedError: A way of scaling positions that is not known here.
    """
    import transformers

    fields = _sizes(file, arch) | _numbers(file, arch)
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    embedding = file.tensors.get("token_embd.weight")
    fields.setdefault("vocab_size", embedding.shape[0] if embedding else 1)
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    head_dim, value_dim = fields["head_dim"], file.metadata.get(f"{arch}.attention.value_length", fields["head_dim"])
    if heads % kv_heads or head_dim < 1 or not isinstance(value_dim, int) or value_dim != head_dim:
        raise IntegrityError(
            f"{file.path}: {heads} heads, {kv_heads} key-value heads of {head_dim} and {value_dim} values "
            "do not fit together.",
            "The file is damaged.",
        )
    fields["tie_word_embeddings"] = "output.weight" not in file.tensors
    fields |= _rope(file, arch, fields)
    fields |= _EXTRAS.get(arch, lambda fields: {})(fields)
    for token in ("bos", "eos", "pad"):
        fields[f"{token}_token_id"] = None
    return make_config(lambda: transformers.AutoConfig.for_model(row.model_type, **fields), str(file.path))


def _sizes(file: GgufFile, arch: str) -> dict[str, Any]:
    fields = {}
    for key, (field, required) in _SIZES.items():
        value = file.metadata.get(f"{arch}.{key}")
        if value is None and required:
            raise IntegrityError(f"{file.path} has no {arch}.{key}.", "Convert the model again.")
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":  # some converters write one value a layer
            if len(set(value.tolist())) != 1:
                raise UnsupportedError(
                    f"{file.path}: {arch}.{key} differs from layer to layer, which is not supported here."
                )
            value = int(value[0])
        check_limits(str(file.path), [(field, f"{arch}.{key}", value)])
        if value is not None:
            fields[field] = value
    return fields


def _numbers(file: GgufFile, arch: str) -> dict[str, Any]:
    fields = {}
    for key, (field, low, high) in _NUMBERS.items():
        value = file.metadata.get(f"{arch}.{key}")
        if value is None:
            continue
        if not isinstance(value, int | float) or not low < value <= high:
            raise IntegrityError(
                f"{file.path}: {arch}.{key} is {value!r}; it must be above {low:g} and at most {high:g}.",
                "The file is damaged; download or convert the model again.",
            )
        fields[field] = float(value)
    return fields


def _rope(file: GgufFile, arch: str, fields: dict[str, Any]) -> dict[str, Any]:
    """How positions turn into angles."""
    theta = fields.pop("rope_theta", 10000.0)
    rotated = file.metadata.get(f"{arch}.rope.dimension_count", fields["head_dim"])
    scaling = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear") or not isinstance(rotated, int) or not 1 <= rotated <= fields["head_dim"]:
        raise UnsupportedError(
            f"{file.path}: positions scaled by {scaling!r} over {rotated!r} of a head's {fields['head_dim']} values "
            "are not supported.",
            "Use the model's Hugging Face folder instead.",
        )
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        factor = file.metadata.get(f"{arch}.rope.scaling.factor")
        if not isinstance(factor, float) or not 1.0 <= factor <= 1e6:
            raise IntegrityError(f"{file.path}: {arch}.rope.scaling.factor is {factor!r}.", "The file is damaged.")
        parameters |= {"rope_type": "linear", "factor": factor}
    if rotated != fields["head_dim"]:
        parameters["partial_rotary_factor"] = rotated / fields["head_dim"]
    return {"rope_parameters": parameters}


def _gemma2(fields: dict[str, Any]) -> dict[str, Any]:
    return {"query_pre_attn_scalar": _query_scalar(fields, layers_of_27b=46)}


def _gemma3(fields: dict[str, Any]) -> dict[str, Any]:
    # Local layers turn at a fixed base and every sixth layer is global: constants of the architecture.
    return {
        "query_pre_attn_scalar": _query_scalar(fields, layers_of_27b=62),
        "rope_parameters": {
            "full_attention": fields["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "layer_types": [
            "full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(fields["num_hidden_layers"])
        ],
    }


def _query_scalar(fields: dict[str, Any], layers_of_27b: int) -> int:
    """What Gemma divides scores by the root of; GGUF does not store it, llama.cpp knows the 27B by its layers."""
    if fields["num_hidden_layers"] == layers_of_27b:
        return fields["hidden_size"] // fields["num_attention_heads"]
    return fields["head_dim"]


_EXTRAS = {"gemma2": _gemma2, "gemma3": _gemma3}

_BLOCK = re.compile(r"^blk\.(\d+)\.")


def hf_name(row: Architecture, name: str) -> str | None:
    """A tensor's Hugging Face name, None if the architecture has no such tensor."""
    stem, dot, suffix = name.rpartition(".")
    block = _BLOCK.match(stem)
    target = row.tensors.get(_BLOCK.sub("blk.#.", stem))
    if target is None or suffix not in ("weight", "bias"):
        return None
    return target.replace("#", block[1] if block else "") + dot + suffix
