"""Makes a Hugging Face folder, and a GGUF, of a published shape with random weights: as fast or slow as the real model.

    python benchmarks/make_model.py qwen2-1.5b build/bench/qwen2-1.5b --gguf build/bench/qwen2-1.5b.gguf
    aicc compile build/bench/qwen2-1.5b --target cpu --quant int4 --group-size 32 --no-measure -o build/qwen2-1.5b.aicc
    python benchmarks/decoder.py --artifact cpu=build/qwen2-1.5b.aicc --model build/bench/qwen2-1.5b.gguf

Its words mean nothing, so there is no quality to measure. The tokenizer is SmolLM2's, whose ids are all
in the vocabulary, so that every command that takes a prompt runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from gguf.quants import quantize
from safetensors import safe_open

from aicc.compiler.importers import import_model
from aicc.compiler.importers.gguf_file import read_gguf
from aicc.compiler.sources import resolve

_TOKENIZER = "smollm2-135m"
_TYPES = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q4_1": gguf.GGMLQuantizationType.Q4_1}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-1.5b": (
        "qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3-8b": (
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
}


def make(shape: str, folder: Path, layers: int | None = None) -> None:
    """Write config.json, the weights as bfloat16 safetensors, and a tokenizer.

    Args:
        shape: One of :data:`SHAPES`.
        folder: Where they go.
        layers: Fewer layers than the shape has, for a quick look.
    """
    model_type, options = SHAPES[shape]
    changes: dict[str, int] = {} if layers is None else {"num_hidden_layers": layers}
    tokenizer = import_model(resolve(_TOKENIZER), digest=False)
    assert tokenizer.llm is not None
    ends = {"bos_token_id": tokenizer.llm.bos_token_id, "eos_token_id": tokenizer.llm.eos_token_ids[0]}
    config = transformers.AutoConfig.for_model(model_type, **(options | ends | changes))
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json or "")


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """The weights of a folder as llama.cpp's converter names them; embeddings are Q8_0, vectors float32.

    Args:
        folder: What :func:`make` wrote.
        path: The file to write.
        kind: One of :data:`_TYPES`, for the matrices of the layers.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, config.model_type, use_temp_file=True)
    writer.add_name(folder.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, config.vocab_size)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dictionary
            matrix = weights.get_tensor(name).float().numpy()
            given = names.get_name(name, (".weight", ".bias"))
            if matrix.ndim == 1:
                writer.add_tensor(given, matrix)
                continue
            stored = gguf.GGMLQuantizationType.Q8_0 if "embd" in given or "output." in given else _TYPES[kind]
            writer.add_tensor(given, quantize(matrix, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """SmolLM2's, with unused tokens up to the size of the vocabulary."""
    facts = read_gguf(resolve(_TOKENIZER).path).metadata
    tokens = [str(token) for token in facts["tokenizer.ggml.tokens"]]
    kinds = [int(kind) for kind in facts["tokenizer.ggml.token_type"]]
    unused = vocabulary - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"<unused_{number}>" for number in range(unused)])
    writer.add_token_types(kinds + [int(gguf.TokenType.UNUSED)] * unused)
    writer.add_token_merges([str(merge) for merge in facts["tokenizer.ggml.merges"]])
    writer.add_bos_token_id(facts["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(facts["tokenizer.ggml.eos_token_id"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than it has")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="also write the weights as GGUF")
    parser.add_argument("--type", choices=_TYPES, default="Q4_0", help="of the GGUF's layers (default: %(default)s)")
    options = parser.parse_args()
    make(options.shape, options.folder, options.layers)
    if options.gguf:
        write_gguf(options.folder, options.gguf, options.type)


if __name__ == "__main__":
    main()
