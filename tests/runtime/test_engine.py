"""The engine gives every request what it would get alone, whatever runs beside it."""

import contextlib
import threading
from collections import deque

import numpy as np
import pytest
from engine_run import EOS, Run, Watched, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from token_batch import token_batch

from aicc.runtime.errors import AiccError
from aicc.runtime.provider import TokenBatch
from aicc.runtime.request import Request
from aicc.runtime.speculation import SpeculationOptions


def test_greedy_tokens_are_those_of_the_graph_computed_without_any_cache(make_decoder, alone):
    decoder = make_decoder()
    ids = [5, 17, 200]
    for _ in range(10):
        pages = range(-(-len(ids) // decoder.page_size))
        batch = token_batch([ids], [0], [pages], last_rows=True)
        ids.append(int(decoder.forward(batch).argmax()))
    assert alone([5, 17, 200]) == ids[3:]


def test_a_device_that_can_choose_does_so_where_nothing_but_the_likeliest_token_is_asked(make_decoder, alone):
    chosen = []

    class Choosing(Watched):
        def forward_best(self, batch):
            logits = self.forward(batch)
            chosen.append(len(logits))
            return logits.argmax(axis=1), logits.max(axis=1)

    for asked, by_device in (({}, True), ({"temperature": 0.8, "seed": 1}, False), ({"logprobs": 2}, False)):
        chosen.clear()
        run = Run(make_decoder(), watch=Choosing)
        first, other = run.submit([5, 17, 200]), run.submit([7, 8], **asked)
        run.finish()
        assert run.ids(first) == alone([5, 17, 200])
        assert run.ids(other) == alone([7, 8], **asked)
        assert bool(chosen) == by_device


def test_a_choice_among_no_numbers_fails_its_request(make_decoder):
    class Broken(Watched):
        def forward_best(self, batch):
            rows = len(self.forward(batch))
            return np.zeros(rows, np.int64), np.full(rows, np.nan, np.float32)

    run = Run(make_decoder(), watch=Broken)
    request = run.submit([5])
    run.finish()
    assert request.finish_reason == "error"
    assert "not finite" in str(run.pieces[request][-1].error)


@given(
    requests=requests,
    page_size=st.integers(1, 16),
    budget=st.integers(1, 64),
    spare_pages=st.integers(0, 8),
    drafts=st.integers(0, 6),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_gets_what_it_would_get_alone(
    make_decoder, alone, requests, page_size, budget, spare_pages, drafts
):
    """Any arrivals, size of pages and steps, drafts or not, and memory for little more than the longest request."""
    longest = max(len(prompt) + tokens for prompt, tokens, _, _ in requests)
    speculation = SpeculationOptions(drafts=drafts, match=1, token_cost=0.001) if drafts else None
    run = Run(make_decoder(longest + spare_pages * page_size, page_size, budget), speculation=speculation)
    submitted = []
    for step in range(21):
        submitted += [
            (run.submit(prompt, max_tokens=tokens, temperature=heat, seed=9), prompt, tokens, heat)
            for prompt, tokens, heat, arrival in requests
            if arrival == step
        ]
        run.engine.step()
    run.finish()
    for request, prompt, tokens, heat in submitted:
        assert run.ids(request) == alone(prompt, max_tokens=tokens, temperature=heat, seed=9)
        assert request.finish_reason == "length"


@given(
    requests=requests,
    events=st.dictionaries(st.integers(0, 20), st.sampled_from(["cancel", "fail", "interrupt", "score"]), max_size=5),
    spare_pages=st.integers(0, 8),
    options=st.sampled_from([{}, {"speculation": SpeculationOptions(match=1, token_cost=0.001)}]),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_who_finishes_has_the_right_tokens(
    make_decoder, alone, requests, events, spare_pages, options
):
    """Cancelled requests, failing steps, interruptions and scored texts between and in the steps of others."""
    longest = max(len(prompt) + tokens for prompt, tokens, _, _ in requests)
    run = Run(make_decoder(longest + spare_pages * 4, 4, 16), **options)
    submitted = []

    for step in range(21):
        submitted += [
            (run.submit(prompt, max_tokens=tokens, temperature=heat, seed=9), prompt, tokens, heat)
            for prompt, tokens, heat, arrival in requests
            if arrival == step
        ]
        event = events.get(step)
        if event == "cancel" and submitted:
            run.engine.cancel(submitted[step % len(submitted)][0])
        elif event == "score":
            with contextlib.suppress(KeyboardInterrupt, RuntimeError):
                run.engine.teacher_forced(np.arange(longest), 5, False, lambda logits: None)
        elif event in ("fail", "interrupt"):
            run.executable.fail_once(RuntimeError() if event == "fail" else KeyboardInterrupt())
        with contextlib.suppress(KeyboardInterrupt):
            run.engine.step()
    with contextlib.suppress(KeyboardInterrupt):  # one that no step has met yet
        run.finish()
    run.finish()
    for request, prompt, tokens, heat in submitted:
        expected = alone(prompt, max_tokens=tokens, temperature=heat, seed=9)
        assert run.ids(request) == expected[: len(run.ids(request))]
        assert (request.finish_reason == "length") == (run.ids(request) == expected)
        assert request.finish_reason in ("length", "cancelled", "error")


def test_a_long_prompt_is_cut_into_chunks_and_makes_no_logits_before_its_end(make_decoder):
    run = Run(make_decoder(max_batch_tokens=16))
    run.submit(list(range(40)), max_tokens=1)
    run.finish()
    assert run.executable.steps == [[(0, 16)], [(16, 16)], [(32, 8)]]


def test_running_requests_go_on_while_a_long_prompt_is_read(make_decoder):
    run = Run(make_decoder(max_batch_tokens=8))
    run.submit([1, 2], max_tokens=6)
    run.engine.step()
    run.submit(list(range(20)), max_tokens=1)
    run.finish()
    assert run.executable.steps == [
        [(0, 2)],
        [(2, 1), (0, 7)],
        [(3, 1), (7, 7)],
        [(4, 1), (14, 6)],
        [(5, 1)],
        [(6, 1)],
    ]


def test_a_short_prompt_does_not_wait_for_a_long_one_to_be_read(make_decoder, alone):
    run = Run(make_decoder(max_batch_tokens=8))
    long, short = run.submit(list(range(100, 150)), max_tokens=2), run.submit([1, 2, 3, 4, 5, 6], max_tokens=2)
    while short.finish_reason is None:
        run.engine.step()
    assert run.executable.steps == [[(0, 4), (0, 4)], [(4, 6), (4, 2)], [(6, 1), (10, 7)]]
    run.finish()
    assert run.ids(long) == alone(list(range(100, 150)), max_tokens=2)


def test_a_long_prompt_is_read_however_many_short_ones_come(make_decoder):
    run = Run(make_decoder(max_batch_tokens=8))
    long = run.submit(list(range(100, 140)), max_tokens=1)
    while long.finish_reason is None:
        run.submit([len(run.pieces), 1, 2, 3, 4, 5], max_tokens=1)
        run.engine.step()
    assert len(run.executable.steps) <= 10  # half of each step is its own
    run.finish()


def test_prompts_of_one_length_are_read_one_after_the_other(make_decoder):
    run = Run(make_decoder(max_batch_tokens=8))
    requests = [run.submit([i] * 16, max_tokens=1) for i in range(3)]
    ended = {}
    while len(ended) < 3:
        run.engine.step()
        ended |= {r: len(run.executable.steps) for r in requests if r.finish_reason and r not in ended}
    assert [ended[r] for r in requests] == [2, 4, 6]


@given(prompts=st.lists(st.integers(1, 200), min_size=1, max_size=5), budget=st.integers(2, 32))
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_every_step_has_a_token_for_each_request_that_decodes(make_decoder, prompts, budget):
    run = Run(make_decoder(kv_tokens=2048, max_batch_tokens=budget), prefix_cache=False)
    requests = [run.submit([i] * length, max_tokens=5) for i, length in enumerate(prompts)]
    decoding: list[Request] = []
    while not all(r.finish_reason for r in requests):
        made = {r: len(run.pieces[r]) for r in requests}
        run.engine.step()
        assert all(len(run.pieces[r]) == made[r] + 1 for r in decoding)
        decoding = [r for r in requests if run.pieces[r] and not r.finish_reason]


def test_when_pages_run_out_the_youngest_request_computes_again_later(make_decoder, alone):
    run = Run(make_decoder(kv_tokens=24, page_size=4))
    first, second = (run.submit([i, 7, 8], max_tokens=20) for i in (1, 2))
    run.finish()
    again = [(past, new) for step in run.executable.steps for past, new in step if past == 0]
    assert again == [(0, 3)] * 3  # the second one's prompt twice
    assert any(past == 3 and new > 1 for step in run.executable.steps for past, new in step), (
        "and what it had generated"
    )
    assert run.ids(first) == alone([1, 7, 8], max_tokens=20)
    assert run.ids(second) == alone([2, 7, 8], max_tokens=20)


def test_a_request_waits_until_its_pages_are_free(make_decoder):
    run = Run(make_decoder(kv_tokens=16, page_size=4))
    first = run.submit(list(range(10)), max_tokens=4)
    run.submit(list(range(12)), max_tokens=2)
    while first.finish_reason is None:
        run.engine.step()
        assert all(len(step) == 1 for step in run.executable.steps)
    run.finish()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_a_request_cancelled_at_any_step_ends_and_gives_its_pages_back(make_decoder, alone, steps):
    run = Run(make_decoder(max_batch_tokens=8))
    stays = run.submit([3, 4], max_tokens=10)
    goes = run.submit(list(range(16)), max_tokens=10)  # waiting at 0, prefill at 1 and 2, then decoding
    for _ in range(steps):
        run.engine.step()
    run.engine.cancel(goes)
    run.engine.settle()
    assert goes.finish_reason == "cancelled"
    assert run.pieces[goes][-1].finish_reason == "cancelled"
    tokens = len(goes.completion_ids)
    run.finish()
    assert len(goes.completion_ids) == tokens
    assert run.ids(stays) == alone([3, 4], max_tokens=10)


def test_a_stream_may_be_forgotten_in_the_middle_of_a_step(make_decoder, alone):
    run = Run(make_decoder())
    stays, goes = run.submit([3, 4]), run.submit([5, 6])

    def forget(index: int) -> None:  # as the garbage collector would, in the thread that steps
        if index == 2:
            run.engine.cancel(goes)
            run.engine.settle()

    run.executable.before_step = forget
    run.finish()
    assert goes.finish_reason == "cancelled"
    assert run.ids(stays) == alone([3, 4])


def test_a_request_submitted_and_cancelled_while_others_are_taken_in_ends(make_decoder):
    run = Run(make_decoder())
    late: list[Request] = []

    class Inbox(deque):
        """One that is looked into just before the request comes."""

        def __bool__(self) -> bool:
            if late:
                return len(self) > 0
            late.append(run.submit([3, 4], max_tokens=50))
            run.engine.cancel(late[0])
            return False

    run.engine._inbox = Inbox()
    run.engine.step()
    run.engine.step()
    assert late[0].finish_reason == "cancelled"


def test_cancelling_a_finished_request_changes_nothing(make_decoder):
    run = Run(make_decoder())
    request = run.submit([1], max_tokens=1)
    run.finish()
    run.engine.cancel(request)
    run.engine.settle()
    assert request.finish_reason == "length"
    assert len(run.pieces[request]) == 1


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_ctrl_c_in_a_step_loses_nothing(make_decoder, alone, step):
    run = Run(make_decoder(max_batch_tokens=8))
    prompts = [list(range(12)), [9, 9]]
    requests = [run.submit(prompt, max_tokens=8) for prompt in prompts]

    def interrupt(index: int) -> None:
        if index == step:
            raise KeyboardInterrupt

    run.executable.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    run.finish()
    assert [run.ids(r) for r in requests] == [alone(prompt, max_tokens=8) for prompt in prompts]


def test_a_failing_step_ends_its_requests_with_the_error_and_no_others(make_decoder, alone):
    run = Run(make_decoder(kv_tokens=16, page_size=4))
    failing = run.submit(list(range(12)), max_tokens=4)
    waiting = run.submit([1, 2], max_tokens=4)

    def fail(index: int) -> None:
        if index == 1:
            raise RuntimeError("the device is gone")

    run.executable.before_step = fail
    run.engine.step()
    assert run.executable.steps[0] == [(0, 12)]
    run.finish()
    assert failing.finish_reason == "error"
    assert str(run.pieces[failing][-1].error) == "the device is gone"
    assert run.ids(waiting) == alone([1, 2], max_tokens=4)
    assert run.engine.failures == 0


def test_what_a_failed_step_did_not_run_computes_again_since_the_device_may_have_lost_its_memory(make_decoder, alone):
    decoder = make_decoder(max_batch_tokens=8, kv_tokens=512)
    run = Run(decoder)
    passed_over = list(range(50, 86))
    run.submit(list(range(40)), max_tokens=4)
    request = run.submit(passed_over, max_tokens=4)
    for _ in range(2):
        run.engine.step()
    run.submit([90, 91, 92, 93, 94], max_tokens=4)  # sooner read, so it comes before the second
    assert request.cached > 0

    def lose(index: int) -> None:
        if index == 2:
            for memory in decoder._memory.values():
                memory[:] = 0
            raise RuntimeError("the device was lost")

    run.executable.before_step = lose
    run.finish()
    assert len(run.executable.steps[2]) == 2
    assert run.ids(request) == alone(passed_over, max_tokens=4)


def test_steps_that_fail_are_counted_until_one_does_not(make_decoder):
    run = Run(make_decoder())
    run.executable.before_step = lambda index: 1 // int(index == 2)
    failures = []
    for _ in range(3):
        run.submit([1, 2], max_tokens=1)
        run.engine.step()
        failures.append(run.engine.failures)
    assert failures == [1, 2, 0]


def test_logits_that_are_not_numbers_end_only_their_own_request(make_decoder, alone):
    decoder = make_decoder()
    forward = decoder.forward

    def with_nan(batch: TokenBatch) -> np.ndarray:
        logits = forward(batch).copy()
        logits[0] = np.nan
        return logits

    run = Run(decoder)
    broken, sound = run.submit([1, 2]), run.submit([3, 4])
    decoder.forward = with_nan
    run.engine.step()
    decoder.forward = forward
    run.finish()
    assert broken.finish_reason == "error"
    assert isinstance(run.pieces[broken][-1].error, AiccError)
    assert run.ids(sound) == alone([3, 4])


def test_an_end_of_sequence_token_ends_the_request_and_is_among_its_tokens(make_decoder):
    run = Run(make_decoder())
    request = run.submit([1], ignore_eos=False, logit_bias={EOS: 100})
    run.finish()
    assert (run.ids(request), request.finish_reason) == ([EOS], "stop")


def test_generation_ends_where_the_memory_does(make_decoder):
    run = Run(make_decoder(kv_tokens=16, page_size=4))
    request = run.submit(list(range(10)), max_tokens=1000)
    full = run.submit(list(range(16)), max_tokens=1000)
    run.finish()
    assert (len(run.ids(request)), request.finish_reason) == (6, "length")
    assert (run.ids(full), full.finish_reason) == ([], "length")


def test_requests_may_come_from_any_thread_while_another_steps(make_decoder, alone):
    run = Run(make_decoder())
    submitted: dict[int, Request] = {}

    def submit(first: int) -> None:
        for i in range(first, first + 5):
            submitted[i] = run.submit([i, i + 1], max_tokens=6)

    threads = [threading.Thread(target=submit, args=(first,)) for first in (10, 20, 30)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not all(r.finish_reason for r in run.pieces):
        run.engine.step()
    for i, request in submitted.items():
        assert run.ids(request) == alone([i, i + 1], max_tokens=6)


def test_time_is_told_apart_into_prefill_and_decode(make_decoder):
    run = Run(make_decoder(max_batch_tokens=8))
    request = run.submit(list(range(20)), max_tokens=5)
    run.finish()
    timings = request.timings
    assert (timings.prompt_tokens, timings.completion_tokens) == (20, 5)
    assert timings.prefill_s > 0
    assert timings.decode_s > 0
    assert timings.prefill_tokens_per_s == 20 / timings.prefill_s
    assert timings.decode_tokens_per_s == 4 / timings.decode_s
