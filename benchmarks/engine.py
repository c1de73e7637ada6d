"""What the engine saves and costs: prompts that begin alike, drafts, sampling; one artifact.

    python benchmarks/engine.py build/smollm2-cpu.aicc

Prefix: the time to the first token of a prompt of 1,000 tokens and a question, then of the same
prompt with other questions. Drafts: tokens a second with and without, rounds alternating, of a text
that repeats itself, of a table whose rows differ in numbers, of an ordinary answer (greedy) and of an
improbable one (temperature 1). Sampling: milliseconds for a step of 64 sequences, which the chip waits
for, and those of the step without it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from aicc.runtime import Model, SamplingParams, SpeculationOptions, load
from aicc.runtime.sampling import Sampler

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
_SEQUENCES = 64
_SAMPLED = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95),
    "top_k": SamplingParams(temperature=0.8, top_k=50),
    "min_p": SamplingParams(temperature=0.8, min_p=0.05),
}


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


def sampling(path: str) -> dict[str, dict[str, float]]:
    """Milliseconds of steps of 64 sequences: the sampling, and all else."""
    spent = 0.0
    found = {}
    original = Sampler.sample

    def timed(self: Sampler, *arguments: Any) -> int:
        nonlocal spent
        start = time.perf_counter()
        token = original(self, *arguments)
        spent += time.perf_counter() - start
        return token

    Sampler.sample = timed  # type: ignore[method-assign]
    with load(path, kv_tokens=_SEQUENCES * 64) as model:
        assert isinstance(model, Model)
        ids = model.tokenizer.encode(_NEWS + _TABLE)
        for name, options in _SAMPLED.items():
            params = msgspec.structs.replace(options, max_tokens=32, ignore_eos=True, seed=1)
            for i in range(_SEQUENCES):
                model.engine.submit(model.request(ids[5 * i : 5 * i + 10], params, lambda piece: None))
            steps = []
            while True:
                start, spent = time.perf_counter(), 0.0
                if not (sequences := model.engine.step()):
                    break
                if sequences == _SEQUENCES:
                    steps.append((spent, time.perf_counter() - start - spent))
            steps = steps[4:]  # that read the prompts
            found[name] = {
                "sampling_ms": 1e3 * median(ours for ours, _ in steps),
                "rest_ms": 1e3 * median(rest for _, rest in steps),
            }
    Sampler.sample = original  # type: ignore[method-assign]
    return found


if __name__ == "__main__":
    path = sys.argv[1]
    print(json.dumps({"prefix": prefix(path), "drafts": drafts(path), "sampling": sampling(path)}, indent=2))
