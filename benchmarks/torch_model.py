"""The same weights in torch: a transformers model with the matrices that a quantised graph multiplies with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from aicc.compiler.importers import ImportedModel, Source
from aicc.compiler.quantization.convert import reader
from aicc.compiler.quantization.policy import find_weights


def config_of(source: Source) -> transformers.PretrainedConfig:
    """The config of a Hugging Face folder or of a GGUF file."""
    if source.kind == "gguf":
        return transformers.AutoConfig.from_pretrained(source.path.parent, gguf_file=source.path.name)
    return transformers.AutoConfig.from_pretrained(source.path)


def on_same_weights(
    imported: ImportedModel, config: transformers.PretrainedConfig, device: str = "cpu"
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """The model in float32, as a function from ids ``[tokens]`` to logits ``[tokens, vocab]``.

    Args:
        imported: Its graph, optimised and quantised; names of weights are the published ones.
        config: The model's.
        device: Torch's name of it.

    Raises:
        ValueError: The graph lacks a parameter of the model, so that some weight would be another.
    """
    initializers = imported.graph.graph.initializers.items()
    weights = {
        name.removesuffix(".bfloat16").removesuffix(".float16"): value.const_value for name, value in initializers
    }
    blocks = {
        use.value.name.partition(".weight")[0] + ".weight": use.blockwise
        for use in find_weights(imported.graph)
        if use.blockwise is not None
    }
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = weights.get(name)
            if name in blocks:
                parameter.copy_(torch.from_numpy(reader(blocks[name])()))
            elif stored is not None:
                parameter.copy_(torch.from_numpy(stored.numpy().astype(np.float32)))
            elif name not in tied:
                raise ValueError(f"the graph has no weight called {name}")
    model.to(device)

    def logits(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            return model(torch.from_numpy(ids)[None].to(device)).logits[0].float().cpu().numpy()  # type: ignore[no-any-return]

    return logits
