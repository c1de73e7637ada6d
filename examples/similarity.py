"""A model of tensors from a program: how close two sentences are, by their embeddings.

aicc compile minilm-l6
python examples/similarity.py minilm-l6.aicc "A cat sleeps." "A kitten is napping."
"""

import sys

from aicc.runtime import load
from aicc.runtime.errors import AiccError

if len(sys.argv) != 4:
    sys.exit("usage: python examples/similarity.py ARTIFACT SENTENCE SENTENCE")
artifact, *sentences = sys.argv[1:]

try:
    with load(artifact) as encoder:
        embedder = getattr(encoder, "embedder", None)
        if embedder is None:
            sys.exit(f"{artifact} makes no embeddings of texts.")
        one, other = embedder.embed(sentences)  # float32 [384] each, of length 1
except AiccError as error:  # its text says what is wrong and what to do
    sys.exit(str(error))

print(f"{one @ other:.3f}")
