"""A prompt that begins like an earlier one is computed from where they part, and gets the same tokens."""

import numpy as np
import pytest
from engine_run import Run

from aicc.runtime import Model, load
from aicc.runtime.machine import processor
from aicc.runtime.target import find_target


@pytest.mark.parametrize(("length", "cached"), [(3, 0), (4, 0), (5, 4), (11, 8), (12, 8), (13, 12)])
def test_whole_pages_are_used_again_and_the_last_token_never(make_decoder, alone, length, cached):
    run = Run(make_decoder(page_size=4))
    prompt = list(range(length))
    first = run.submit(prompt)
    run.finish()
    second = run.submit(prompt)
    run.finish()
    assert run.ids(first) == run.ids(second) == alone(prompt)
    assert (first.cached_prompt_tokens, second.cached_prompt_tokens) == (0, cached)
    assert (run.engine.counters.prompt_tokens, run.engine.counters.cached_tokens) == (2 * length, cached)
    assert run.executable.steps[10][0] == (cached, length - cached)
    assert second.timings.cached_prompt_tokens == cached


def test_a_conversation_goes_on_after_what_was_generated(make_decoder, alone):
    run = Run(make_decoder(page_size=4))
    first = run.submit([1, 2, 3], max_tokens=10)
    run.finish()
    turn = [1, 2, 3, *run.ids(first), 50, 51]
    second = run.submit(turn)
    run.finish()
    assert second.cached_prompt_tokens == 12  # of the last token generated nothing was computed
    assert run.ids(second) == alone(turn)


class Apart:
    """A decoder that would compute prompts by other kernels."""

    prompts_apart = True

    def __init__(self, decoder):
        self._decoder = decoder

    def __getattr__(self, name):
        return getattr(self._decoder, name)


def test_where_prompts_have_kernels_of_their_own_what_was_generated_is_read_again(make_decoder, alone):
    run = Run(Apart(make_decoder(page_size=4)))
    first = run.submit([1, 2, 3, 4, 5], max_tokens=10)
    run.finish()
    assert run.executable.roles == [[True]] + 9 * [[False]]
    turn = [1, 2, 3, 4, 5, *run.ids(first), 50, 51]
    second, again = run.submit(turn), run.submit([1, 2, 3, 4, 5], max_tokens=2)
    run.finish()
    assert second.cached_prompt_tokens == again.cached_prompt_tokens == 4
    assert run.ids(second) == alone(turn)


def test_requests_computed_again_read_their_prompts_apart_from_what_was_generated(make_decoder, alone):
    run = Run(Apart(make_decoder(kv_tokens=48, page_size=4)))
    requests = [run.submit([i, 7, 9], max_tokens=20) for i in range(4)]
    run.finish()
    assert run.engine.counters.preemptions
    assert [run.ids(r) for r in requests] == [alone([i, 7, 9], max_tokens=20) for i in range(4)]
    for step, roles in zip(run.executable.steps, run.executable.roles, strict=True):
        assert roles == sorted(roles)
        for (past, new), in_prompt in zip(step, roles, strict=True):
            assert in_prompt == (past < 3)
            assert not in_prompt or past + new <= 3


def test_requests_that_come_together_compute_their_beginning_once(make_decoder, alone):
    run = Run(make_decoder(page_size=4, max_batch_tokens=8))
    prompts = [[*range(20), 100 + i] for i in range(4)]
    requests = [run.submit(prompt, max_tokens=3) for prompt in prompts]
    run.finish()
    assert [run.ids(request) for request in requests] == [alone(prompt, max_tokens=3) for prompt in prompts]
    assert [request.cached_prompt_tokens for request in requests] == [0, 20, 20, 20]


def test_one_that_waits_for_a_beginning_goes_on_when_who_computes_it_is_cancelled(make_decoder, alone):
    run = Run(make_decoder(page_size=16, max_batch_tokens=8))
    prompt = list(range(40))
    goes, stays = run.submit(prompt), run.submit(prompt)
    other = run.submit([200, 201], max_tokens=2)
    run.engine.step()
    assert run.executable.steps == [[(0, 6), (0, 2)]]
    run.engine.cancel(goes)
    run.finish()
    assert run.ids(stays) == alone(prompt)
    assert run.ids(other) == alone([200, 201], max_tokens=2)


def test_what_a_failed_step_may_have_left_behind_is_never_used(make_decoder, alone):
    run = Run(make_decoder(page_size=4))
    prompt = list(range(12))
    run.submit(prompt, max_tokens=1)
    run.finish()

    def fail(index: int) -> None:
        if index == 1:
            for memory in run.executable.decoder._memory.values():
                memory[:] = np.nan
            raise RuntimeError("the device is gone")

    run.executable.before_step = fail
    failing = run.submit([*prompt, 100, 101, 102, 103])
    run.finish()
    assert failing.finish_reason == "error"
    again = run.submit(prompt)
    run.finish()
    assert again.cached_prompt_tokens == 0
    assert run.ids(again) == alone(prompt)


def test_keys_and_values_that_give_no_numbers_are_not_used_twice(make_decoder, alone):
    run = Run(make_decoder(page_size=4))
    prompt = list(range(12))
    run.submit(prompt, max_tokens=1)
    run.finish()
    for memory in run.executable.decoder._memory.values():
        memory[:] = np.nan
    broken = run.submit(prompt)
    run.finish()
    assert (broken.cached_prompt_tokens, broken.finish_reason) == (8, "error")
    again = run.submit(prompt)
    run.finish()
    assert again.cached_prompt_tokens == 0
    assert run.ids(again) == alone(prompt)


def test_a_scored_text_leaves_nothing_to_use_again(make_decoder, alone):
    run = Run(make_decoder(page_size=4))
    prompt = list(range(12))
    run.submit(prompt, max_tokens=1)
    run.finish()
    run.engine.teacher_forced(np.arange(100, 200), 16, False, lambda logits: None)
    request = run.submit(prompt)
    run.finish()
    assert request.cached_prompt_tokens == 0
    assert run.ids(request) == alone(prompt)


def test_a_preempted_request_finds_what_is_left_of_it(make_decoder, alone):
    run = Run(make_decoder(kv_tokens=24, page_size=4))
    first, second = (run.submit([i, 7, 8], max_tokens=20) for i in (1, 2))
    run.finish()
    assert run.engine.counters.preemptions
    assert run.ids(first) == alone([1, 7, 8], max_tokens=20)
    assert run.ids(second) == alone([2, 7, 8], max_tokens=20)
    assert second.cached_prompt_tokens == 0  # its own tokens are no earlier prompt's


def test_prompt_logprobs_need_the_prompt_computed_and_leave_it_for_others(make_decoder):
    run = Run(make_decoder(page_size=4))
    for _ in range(2):
        request = run.submit(list(range(12)), max_tokens=1, prompt_logprobs=0)
        run.finish()
        assert request.cached_prompt_tokens == 0
        assert len(request.prompt_logprobs) == 12
    plain = run.submit(list(range(12)), max_tokens=1)
    run.finish()
    assert plain.cached_prompt_tokens == 8


def test_turned_off_every_prompt_is_computed(make_decoder):
    run = Run(make_decoder(page_size=4), prefix_cache=False)
    for _ in range(2):
        request = run.submit(list(range(12)), max_tokens=1)
        run.finish()
        assert request.cached_prompt_tokens == 0
    assert run.executable.steps == [[(0, 12)], [(0, 12)]]


TEXT = "Paris is the capital of France. " * 20


@pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_model_says_the_same_with_and_without(cpu_artifact, temperature):
    answers = []
    for prefix_cache in (True, False):
        with load(cpu_artifact.path, kv_tokens=1024, prefix_cache=prefix_cache) as model:
            assert isinstance(model, Model)
            answers.append(
                [
                    model.generate(TEXT + end, max_tokens=24, temperature=temperature, seed=1)
                    for end in ("Once", "Rome is", "Once", "Once upon a time")
                ]
            )
    with_cache, without = answers
    assert [a.token_ids for a in with_cache] == [a.token_ids for a in without]
    assert [a.timings.cached_prompt_tokens > 100 for a in with_cache] == [False, True, True, True]
    assert not any(a.timings.cached_prompt_tokens for a in without)
