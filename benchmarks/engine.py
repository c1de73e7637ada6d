"""What the engine saves: prompts that begin alike, and drafts; one artifact, one sequence at a time.

    python benchmarks/engine.py build/smollm2-cpu.aicc

Prefix: the time to the first token of a prompt of 1,000 tokens and a question, then of the same
prompt with other questions. Drafts: tokens a second with and without, rounds alternating, of a text
that repeats itself, of a table whose rows differ in numbers, of an ordinary answer (greedy) and of an
improbable one (temperature 1).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from statistics import median

from aicc.runtime import Model, SpeculationOptions, load

_TABLE = "".join(f"| item {i} | {i * 37 % 101} pieces | shelf {i % 7} |\n" for i in range(1, 25))
_NEWS = (
    "The harbour will be closed from Monday, said the mayor, because the old pier has to be repaired. Fishermen may "
    "use the northern basin until the work is done, which should take three weeks if the weather holds. The market "
    "moves to the church square for that time; the ferry to the islands leaves from the railway bridge. "
)
_PROMPTS = {
    "repeating": (_NEWS * 2 + _NEWS[:60], 0.0),
    "table": (_TABLE, 0.0),
    "ordinary": ("Explain how a refrigerator works, and what can go wrong with one.", 0.0),
    "improbable": ("Tell me about a day at the sea.", 1.0),
}
_TOKENS, _ROUNDS = 150, 7


def first_token(model: Model, ids: Sequence[int]) -> float:
    """Seconds to the first token of a prompt."""
    start = time.perf_counter()
    next(stream := model.stream(ids, max_tokens=2, ignore_eos=True))
    seconds = time.perf_counter() - start
    stream.close()  # type: ignore[attr-defined]
    return seconds


def prefix(path: str) -> dict[str, float]:
    """Median time to the first token with the prefix new and known."""
    with load(path, kv_tokens=4096) as model:
        assert isinstance(model, Model)
        first_token(model, range(5000, 5600))  # what is set up lazily
        firsts, seconds = [], []
        for i in range(_ROUNDS):
            shared = list(range(100 + i, 1100 + i))
            first, *others = [first_token(model, [*shared, 2000 + j, 3000, 4000]) for j in range(4)]
            firsts.append(first)
            seconds += others
    return {"first_s": median(firsts), "second_s": median(seconds), "ratio": median(seconds) / median(firsts)}


def drafts(path: str) -> dict[str, dict[str, float]]:
    """Tokens a second without and with drafts, and what became of them."""
    plain, drafting = load(path, kv_tokens=2048), load(path, kv_tokens=2048, speculation=SpeculationOptions())
    assert isinstance(plain, Model)
    assert isinstance(drafting, Model)
    found = {}
    for name, (prompt, temperature) in _PROMPTS.items():
        is_chat = name in ("ordinary", "improbable")
        ids = plain.chat_ids([{"role": "user", "content": prompt}]) if is_chat else plain.tokenizer.encode(prompt)
        rates: dict[Model, list[float]] = {plain: [], drafting: []}
        counters = drafting.engine.counters
        drafted, accepted = counters.drafted_tokens, counters.accepted_tokens
        for i in range(_ROUNDS):
            said = []
            for model, mine in list(rates.items())[:: 1 if i % 2 else -1]:
                generation = model.generate(ids, max_tokens=_TOKENS, temperature=temperature, seed=i, ignore_eos=True)
                mine.append(generation.timings.decode_tokens_per_s)
                said.append(generation.token_ids)
            if said[0] != said[1]:
                print(f"{name}: drafts changed the text", file=sys.stderr)
        drafted, accepted = counters.drafted_tokens - drafted, counters.accepted_tokens - accepted
        without, with_drafts = median(rates[plain]), median(rates[drafting])
        found[name] = {
            "without_tokens_per_s": without,
            "with_tokens_per_s": with_drafts,
            "ratio": with_drafts / without,
            "drafted": drafted,
            "accepted": accepted,
        }
    plain.close()
    drafting.close()
    return found


if __name__ == "__main__":
    print(json.dumps({"prefix": prefix(sys.argv[1]), "drafts": drafts(sys.argv[1])}, indent=2))
