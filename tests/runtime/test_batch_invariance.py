"""The same request gets the same answer on the real model, whatever else is in the batch."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicc.runtime import Model, SamplingParams, SpeculationOptions, load
from aicc.runtime.errors import UsageError
from aicc.runtime.machine import processor
from aicc.runtime.request import Piece
from aicc.runtime.target import find_target

PROMPTS = (
    "The sea was calm and",
    "1, 2, 3, 1, 2, 3, 1, 2,",
    "Dear Sir or Madam, I am writing to you because of the " * 3,
    "def add(a, b):\n    return",
)
TOKENS = 12


def answer(model: Model, prompt: str, temperature: float) -> list[tuple[int, float]]:
    """What a prompt gets when nothing else is asked."""
    said = submit(model, prompt, temperature, seed=7)
    while model.engine.step():
        pass
    return said


def submit(model: Model, prompt: str, temperature: float, seed: int | None) -> list[tuple[int, float]]:
    """Submit a prompt; its tokens and their log-probabilities, which come while somebody steps."""
    params = SamplingParams(
        max_tokens=TOKENS, temperature=temperature, top_p=0.95, seed=seed, ignore_eos=True, logprobs=0
    )
    said: list[tuple[int, float]] = []

    def take(piece: Piece) -> None:
        assert piece.logprobs is not None
        said.append((piece.token_ids[0], piece.logprobs.token))

    model.engine.submit(model.request(prompt, params, take))
    return said


@pytest.fixture(scope="module")
def alone(cpu_artifact) -> dict[tuple[str, float], list[tuple[int, float]]]:
    """What each prompt gets from an engine that does nothing else and keeps nothing."""
    with load(cpu_artifact.path, kv_tokens=1024, prefix_cache=False) as model:
        assert isinstance(model, Model)
        return {(prompt, heat): answer(model, prompt, heat) for prompt in PROMPTS for heat in (0.0, 1.0)}


@pytest.fixture(scope="module", params=[None, SpeculationOptions(match=1, token_cost=0.01)], ids=["plain", "drafts"])
def busy(cpu_artifact, request) -> Iterator[Model]:
    with load(cpu_artifact.path, kv_tokens=1024, speculation=request.param) as model:
        assert isinstance(model, Model)
        yield model


@pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")
@given(
    mine=st.tuples(st.sampled_from(PROMPTS), st.sampled_from([0.0, 1.0]), st.integers(0, 4)),
    others=st.lists(
        st.tuples(st.sampled_from(PROMPTS) | st.text("ab ,.", min_size=1, max_size=80), st.integers(0, 8)), max_size=6
    ),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_tokens_and_log_probabilities_are_those_it_gets_alone_to_the_last_bit(busy, alone, mine, others):
    """Companions come and go at any step; prompts share pages; some are drafted."""
    prompt, temperature, arrival = mine
    said: list[tuple[int, float]] = []
    for step in range(9):
        for other, at in others:
            if at == step:
                submit(busy, other, 1.0, seed=None)
        if step == arrival:
            said = submit(busy, prompt, temperature, seed=7)
        busy.engine.step()
    while busy.engine.step():
        pass
    assert said == alone[prompt, temperature]


def test_a_chip_that_rounds_differently_in_a_batch_has_a_mode_that_does_the_same(demo_artifact):
    with load(demo_artifact.path, kv_tokens=1024, reproducible=True) as model:
        assert isinstance(model, Model)
        alone = [answer(model, prompt, 1.0) for prompt in PROMPTS]
        for prompt, expected in zip(PROMPTS, alone, strict=True):
            submit(model, PROMPTS[2], 1.0, seed=None)
            said = submit(model, prompt, 1.0, seed=7)
            submit(model, prompt, 1.0, seed=None)
            while model.engine.step():
                pass
            assert said == expected


def test_reproducible_answers_and_drafts_exclude_each_other(demo_artifact):
    with pytest.raises(UsageError, match="exclude each other"):
        load(demo_artifact.path, reproducible=True, speculation=SpeculationOptions())
