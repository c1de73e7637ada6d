"""A model of tensors from a program: how close two sentences are, by their embeddings.

aicc compile minilm-l6
python examples/similarity.py minilm-l6.aicc "A cat sleeps." "A kitten is napping."
"""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from aicc.runtime import load

if len(sys.argv) != 4:
    sys.exit("usage: python examples/similarity.py ARTIFACT SENTENCE SENTENCE")
artifact, *sentences = sys.argv[1:]
tokenizer = Tokenizer.from_file(str(Path(artifact, "tokenizer", "tokenizer.json")))
tokenizer.enable_padding()
tokenizer.enable_truncation(256)  # what this model was trained with
encoded = tokenizer.encode_batch(sentences)
ids = np.array([one.ids for one in encoded])
mask = np.array([one.attention_mask for one in encoded])

with load(artifact) as session:
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    hidden = session.run(inputs)["last_hidden_state"]  # float32 [sentence, token, 384]

# The compile said how to pool: the mean over the tokens that are no padding.
vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
print(f"{vectors[0] @ vectors[1]:.3f}")
