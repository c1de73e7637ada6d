"""Sentences, their tokens, and the mean of what an encoder makes of each."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The stock market fell sharply on Tuesday.",
    "How do I bake bread without yeast?",
    "Quantum computers use superposition.",
    "It rained all night in the mountains.",
    "She plays the violin in a quartet.",
    "Compilers translate programs.",
    "The train to Lyon leaves at noon.",
    "Vaccines train the immune system.",
    "No.",
)


def tokens_of(folder: Path) -> dict[str, NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }


def mean_pooled(states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    weights = mask[..., None]
    return (states * weights).sum(axis=1) / weights.sum(axis=1)
