"""Load an artifact and generate: all a program needs to embed a model.

python examples/embed.py smol.aicc "Name three colours."
"""

import sys

from aicc.runtime import load
from aicc.runtime.errors import AiccError

if len(sys.argv) != 3:
    sys.exit("usage: python examples/embed.py ARTIFACT PROMPT")
try:
    with load(sys.argv[1]) as model:
        ids = model.chat_ids([{"role": "user", "content": sys.argv[2]}])
        for piece in model.stream(ids, max_tokens=128):
            print(piece.text, end="", flush=True)
        print()
except AiccError as error:  # its text says what is wrong and what to do
    sys.exit(str(error))
