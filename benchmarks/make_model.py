"""Makes a Hugging Face folder of a published shape with random weights: as fast or slow as the real model.

    python benchmarks/make_model.py qwen2-1.5b build/bench/qwen2-1.5b
    aicc compile build/bench/qwen2-1.5b --target cpu --quant int4 --group-size 32 --no-measure -o build/qwen2-1.5b.aicc

Its words mean nothing, so there is no quality to measure. The tokenizer is SmolLM2's, whose ids are all
in the vocabulary, so that every command that takes a prompt runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers

from aicc.compiler.importers import import_model
from aicc.compiler.sources import resolve

_TOKENIZER = "smollm2-135m"
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than it has")
    options = parser.parse_args()
    make(options.shape, options.folder, options.layers)


if __name__ == "__main__":
    main()
