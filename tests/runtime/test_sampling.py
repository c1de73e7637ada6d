"""Sampling against a slow oracle that does one thing at a time, in float64 and plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicc.runtime.errors import AiccError, UsageError
from aicc.runtime.sampling import Sampler, SamplingParams, TokenLogprobs, _draw, _largest, _nucleus

VOCAB = 40
NO_PROMPT = np.empty(0, np.int64)

# A few levels only, so that ties are common; quarters, so that float32 and float64 agree exactly.
logit_rows = st.lists(st.integers(-20, 20), min_size=VOCAB, max_size=VOCAB).map(
    lambda row: np.array(row, np.float32) / 4
)


def oracle(logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]) -> dict[int, float]:
    """Probability of each token that may follow, in the documented order of operations."""
    values = {token: float(value) for token, value in enumerate(logits)}
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(output):
        values[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    for token, bias in params.logit_bias.items():
        values[token] += bias
    ranked = sorted(values, key=lambda token: (-values[token], token))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = {token: math.exp((values[token] - values[ranked[0]]) / params.temperature) for token in ranked}
    weights = normalised(weights)
    if params.top_p < 1:
        kept, total = [], 0.0
        for token in ranked:
            kept.append(token)
            total += weights[token]
            if total >= params.top_p:
                break
        weights = normalised({token: weights[token] for token in kept})
    highest = max(weights.values())
    return normalised({token: w for token, w in weights.items() if w >= params.min_p * highest})


def probabilities(sampler: Sampler, logits: np.ndarray, allowed: np.ndarray | None = None) -> dict[int, float]:
    """What a sampler draws from, which its draws alone would take thousands to tell."""
    adjusted = sampler._adjust(logits, allowed)
    ids, weights = sampler._weights(adjusted, float(adjusted.max()))
    return normalised(dict(zip(range(VOCAB) if ids is None else ids.tolist(), weights.tolist(), strict=True)))


def normalised(weights: dict[int, float]) -> dict[int, float]:
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def on_an_edge(logits: np.ndarray, params: SamplingParams) -> bool:
    """Whether a filter's limit falls so close to a token that rounding decides about it."""
    open_params = SamplingParams(temperature=params.temperature, top_k=params.top_k)
    weights = sorted(oracle(logits, open_params, [], []).values(), reverse=True)
    sums = np.cumsum(weights)
    return bool(np.abs(sums - params.top_p).min() < 1e-4) or any(
        abs(w - params.min_p * weights[0]) < 1e-6 for w in weights
    )


@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
)
@settings(max_examples=300)
def test_filters_give_exactly_the_oracles_distribution(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if on_an_edge(logits, params):
        return
    assert probabilities(Sampler(params, VOCAB, NO_PROMPT), logits) == pytest.approx(
        oracle(logits, params, [], []), rel=1e-4
    )


@given(
    logits=logit_rows,
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=8),
    steps=st.integers(0, 6),
    repetition=st.sampled_from([1.0, 1.25, 2.0, 0.5]),
    presence=st.sampled_from([0.0, 0.75, -0.5]),
    frequency=st.sampled_from([0.0, 0.25, 1.5]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-10, 10), max_size=4),
)
@settings(max_examples=200)
def test_penalties_count_the_prompt_and_the_output_as_the_oracle_does(
    logits, prompt, steps, repetition, presence, frequency, bias
):
    params = SamplingParams(
        temperature=1.0,
        seed=1,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    sampler = Sampler(params, VOCAB, np.array(prompt, np.int64))
    before = logits.copy()
    output = [sampler.sample(logits) for _ in range(steps)]
    assert probabilities(sampler, logits) == pytest.approx(oracle(logits, params, prompt, output), rel=1e-3, abs=1e-7)
    np.testing.assert_array_equal(logits, before)


@given(logits=logit_rows, bias=st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-10, 10), max_size=4))
def test_temperature_zero_takes_the_most_likely_token_after_bias(logits, bias):
    biased = logits.copy()
    for token, value in bias.items():
        biased[token] += value
    assert Sampler(SamplingParams(logit_bias=bias), VOCAB, NO_PROMPT).sample(logits) == biased.argmax()


def test_a_nucleus_larger_than_the_first_look_is_found_whole():
    assert _nucleus(np.ones(5000, np.float32), 0.8999).tolist() == list(range(4500))


@given(
    weights=st.lists(st.integers(0, 5) | st.sampled_from([0, 3000]), min_size=1, max_size=2000).filter(any),
    top_p=st.floats(0.01, 1, exclude_max=True),
)
def test_a_nucleus_is_the_shortest_beginning_of_a_stable_sort_that_has_its_part_of_the_whole(weights, top_p):
    array = np.array(weights, np.float32)
    ranked = np.argsort(-array, kind="stable")
    count = int(np.argmax(np.cumsum(array[ranked], dtype=np.float64) >= top_p * sum(weights))) + 1
    assert _nucleus(array, top_p).tolist() == sorted(ranked[:count].tolist())


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=1000).filter(any),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_takes_the_token_at_which_the_running_sum_passes_it(weights, uniform):
    drawn = _draw(np.array(weights, np.float32), uniform)
    assert sum(weights[:drawn]) <= uniform * sum(weights) < sum(weights[: drawn + 1])


@given(zeros=st.integers(0, 300), count=st.integers(1, 600), weight=st.sampled_from([0.1, 0.3, 0.7, 1e-6]))
def test_the_last_draw_there_is_takes_the_last_token_that_has_a_weight(zeros, count, weight):
    weights = np.array([weight] * count + [0] * zeros, np.float32)
    assert _draw(weights, math.nextafter(1, 0)) == count - 1


@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=2000), data=st.data())
def test_the_largest_are_those_a_stable_sort_puts_first(values, data):
    count = data.draw(st.integers(0, len(values)))
    array = np.array(values, np.float32)
    assert _largest(array, count).tolist() == sorted(np.argsort(-array, kind="stable")[:count].tolist())


def test_the_same_seed_draws_the_same_tokens_whatever_else_is_drawn_meanwhile():
    rows = np.random.default_rng(0).standard_normal((20, VOCAB)).astype(np.float32)

    def draw(seed: int, neighbours: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), VOCAB, NO_PROMPT)
        others = [Sampler(SamplingParams(temperature=1.0, seed=100 + i), VOCAB, NO_PROMPT) for i in range(neighbours)]
        return [(sampler.sample(row), [other.sample(row) for other in others])[0] for row in rows]

    assert draw(5, 0) == draw(5, 3)
    assert draw(5, 0) != draw(6, 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bias", [{}, {3: 100.0}])
def test_the_largest_logit_found_for_a_whole_batch_changes_nothing(temperature, bias):
    rows = np.random.default_rng(1).integers(-20, 20, (30, VOCAB)).astype(np.float32)
    params = SamplingParams(temperature=temperature, seed=4, logit_bias=bias, top_p=0.9)
    alone, among = Sampler(params, VOCAB, NO_PROMPT), Sampler(params, VOCAB, NO_PROMPT)
    for row, best in zip(rows, rows.argmax(axis=1).tolist(), strict=True):
        assert alone.sample(row) == among.sample(row, None, (best, float(row[best])))


def test_without_a_seed_draws_differ():
    flat = np.zeros(VOCAB, np.float32)
    samplers = [Sampler(SamplingParams(temperature=1.0), VOCAB, NO_PROMPT) for _ in range(2)]
    assert [samplers[0].sample(flat) for _ in range(40)] != [samplers[1].sample(flat) for _ in range(40)]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 0.01])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature):
    logits = np.linspace(-50, 50, VOCAB, dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=temperature, seed=0), VOCAB, NO_PROMPT)
    assert [sampler.sample(logits) for _ in range(10)] == [VOCAB - 1] * 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error_and_not_a_token(temperature, broken):
    logits = np.zeros(VOCAB, np.float32)
    logits[3] = broken
    with pytest.raises(AiccError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature), VOCAB, NO_PROMPT).sample(logits)


def test_logprobs_are_of_the_model_and_not_of_the_filters():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(SamplingParams(temperature=0.0, logit_bias={3: 50}), 4, NO_PROMPT)
    token = sampler.sample(logits)
    told = TokenLogprobs.of(logits, token, 2)
    assert token == 3
    assert told.token == pytest.approx(math.log(0.125), abs=1e-5)
    assert [i for i, _ in told.top] == [0, 1]
    assert [p for _, p in told.top] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2.0),
        ("max_tokens", 0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("presence_penalty", float("inf")),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", [3]),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", [1]),
        ("ignore_eos", 1),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})


@given(logits=logit_rows, allowed=st.sets(st.integers(0, VOCAB - 1), min_size=1), top_k=st.integers(0, 5))
def test_only_allowed_tokens_are_drawn_and_the_others_share_what_is_left(logits, allowed, top_k):
    mask = np.zeros(VOCAB, np.bool_)
    mask[list(allowed)] = True
    masked = np.where(mask, logits, np.float32(-100))  # the oracle cannot take infinities
    expected = oracle(masked, SamplingParams(temperature=1.0, top_k=top_k), [], [])
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=top_k, seed=1), VOCAB, NO_PROMPT)
    told = probabilities(sampler, logits, mask)
    assert all(told.get(token, 0) == pytest.approx(expected.get(token, 0), rel=1e-4) for token in allowed)
    assert {token for token, probability in told.items() if probability} <= allowed
    assert sampler.sample(logits, mask) in allowed
    assert Sampler(SamplingParams(), VOCAB, NO_PROMPT).sample(logits, mask) == masked.argmax()


def test_a_bias_for_a_token_the_model_lacks_is_refused():
    with pytest.raises(UsageError, match="logit_bias"):
        Sampler(SamplingParams(logit_bias={VOCAB: 1.0}), VOCAB, NO_PROMPT)


def test_one_stop_string_may_be_given_as_it_is():
    assert SamplingParams(stop="END").stops == ("END",)
