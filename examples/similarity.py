"""A model of tensors from a program: how close two sentences are, by their embeddings.

aicc compile minilm-l6
python examples/similarity.py minilm-l6.aicc "A cat sleeps." "A kitten is napping."
"""

import sys

from aicc.runtime import load

if len(sys.argv) != 4:
    sys.exit("usage: python examples/similarity.py ARTIFACT SENTENCE SENTENCE")
artifact, *sentences = sys.argv[1:]

with load(artifact) as encoder:
    one, other = encoder.embedder.embed(sentences)  # float32 [384] each, of length 1

print(f"{one @ other:.3f}")
