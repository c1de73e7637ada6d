"""Miniature models with random weights, of every architecture the importers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
import transformers

from aicc.compiler.importers import ImportedModel

# Sizes that catch confusions: 72 is no square, 6 heads share 3 key-value heads, windows are shorter than the texts.
_COMMON = {
    "vocab_size": 211,
    "hidden_size": 72,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SHARED = {"num_key_value_heads": 3}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": 32,
}
_GEMMA = _SHARED | {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SHARED),
    "llama tied, with bias": ("llama", _SHARED | {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 32}),
    "llama 3.1 positions": ("llama", _SHARED | {"rope_parameters": _LLAMA3}),
    "llama linear positions": (
        "llama",
        _SHARED | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama yarn positions": ("llama", _SHARED | {"rope_parameters": _YARN}),
    "mistral": ("mistral", _SHARED | {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", _SHARED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _SHARED | {"head_dim": 32}),
    "gemma": ("gemma", _SHARED | {"head_dim": 32}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": (
        "phi3",
        _SHARED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3 long positions": ("phi3", _SHARED | {"original_max_position_embeddings": 32, "rope_parameters": _LONGROPE}),
    "granite": (
        "granite",
        _SHARED
        | {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "olmo2": ("olmo2", _SHARED),
    "smollm3": ("smollm3", _SHARED | {"no_rope_layers": [1, 0, 1]}),
    "starcoder2": ("starcoder2", _SHARED | {"sliding_window": None}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "distilbert": ("distilbert", {"dim": 72, "n_layers": 3, "n_heads": 6, "hidden_dim": 96}),
    "roberta": ("roberta", {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
}


def make_decoder(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A miniature of :data:`DECODERS`, float32, with weights large enough for every part to matter."""
    model_type, options = DECODERS[name]
    config = transformers.AutoConfig.for_model(model_type, **{**_COMMON, **options, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return _randomised(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def make_encoder(name: str) -> transformers.PreTrainedModel:
    model_type, options = ENCODERS[name]
    torch.manual_seed(0)
    return _randomised(
        transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **{**_COMMON, **options}))
    )


def _randomised(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def open_session(imported: ImportedModel, folder: Path) -> onnxruntime.InferenceSession:
    """The imported graph in onnxruntime, whose operators follow the ONNX reference."""
    ir.save(imported.graph, folder / "imported.onnx", external_data="imported.data")
    return onnxruntime.InferenceSession(folder / "imported.onnx")


def decoder_logits(session: onnxruntime.InferenceSession, ids: np.ndarray, steps: list[int]) -> np.ndarray:
    """Logits ``[batch, tokens, vocab]`` of a decoder fed in pieces that end at ``steps``, with its KV cache."""
    past = {
        value.name: np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    pieces, begin = [], 0
    for end in steps:
        feed = {
            "input_ids": ids[:, begin:end],
            "attention_mask": np.ones((len(ids), end), np.int64),
            "position_ids": np.tile(np.arange(begin, end), (len(ids), 1)),
        }
        results = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed | past), strict=True))
        pieces.append(results.pop("logits"))
        past = {name.replace("present.", "past_key_values."): value for name, value in results.items()}
        begin = end
    return np.concatenate(pieces, axis=1)
