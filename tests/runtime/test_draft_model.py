"""A second model guesses, and never changes what is said."""

import contextlib
import json

import numpy as np
import pytest
from engine_run import VOCAB, Run, Watched, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_decoder import write_tiny

from aicc.runtime import Model, SamplingParams, SpeculationOptions, load
from aicc.runtime.draft_model import DraftModel
from aicc.runtime.errors import UsageError
from aicc.runtime.machine import processor
from aicc.runtime.target import find_target

EAGER = SpeculationOptions(drafts=4, token_cost=0.001)
needs_cpu = pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")


class Erring:
    """A decoder that finds another token likeliest than it should, some of the time or always."""

    def __init__(self, decoder, every: int):
        self.decoder, self.every = decoder, every
        self.page_size, self.page_count = decoder.page_size, decoder.page_count
        self.max_batch_tokens, self.prompts_apart = decoder.max_batch_tokens, decoder.prompts_apart

    def forward(self, batch) -> np.ndarray:
        logits = self.decoder.forward(batch).copy()
        for row in logits:
            best = int(row.argmax())
            if best % self.every == 0:
                row[(best + 1) % VOCAB] = row[best] + 1
        return logits


class Drafts:
    """A run whose drafts come from a decoder, which is watched like the target."""

    def __init__(self, target, draft, options: SpeculationOptions = EAGER, context: int = 256):
        self.executable = Watched(draft)
        self.drafter = DraftModel(self.executable, options, 0.0, context, VOCAB, prefix_cache=True)
        self.run = Run(target, self.drafter)

    def finish(self) -> None:
        self.run.finish()
        assert self.drafter.allocator.free == self.executable.page_count
        assert not self.drafter._texts


def test_a_model_that_drafts_for_itself_is_always_right(make_decoder, alone):
    drafts = Drafts(make_decoder(), make_decoder())
    request = drafts.run.submit([5, 17, 200], max_tokens=21)
    drafts.finish()
    assert drafts.run.ids(request) == alone([5, 17, 200], max_tokens=21)
    counters = drafts.run.engine.counters
    assert counters.drafted_tokens == counters.accepted_tokens == 16
    # The first token comes with the prompt; then four drafts and one more token a step.
    assert drafts.run.executable.steps == [[(0, 3)], [(3, 5)], [(8, 5)], [(13, 5)], [(18, 5)]]
    assert drafts.executable.steps[:5] == [[(0, 4)], [(4, 1)], [(5, 1)], [(6, 1)], [(7, 2)]]


@given(
    requests=requests,
    spare_pages=st.integers(0, 8),
    page_size=st.integers(1, 16),
    budget=st.integers(1, 64),
    kv_tokens=st.integers(1, 200),
    context=st.integers(1, 60),
    every=st.integers(1, 5),
    events=st.dictionaries(
        st.integers(0, 20), st.sampled_from(["cancel", "fail", "fail draft", "interrupt draft", "score"]), max_size=4
    ),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_gets_what_it_would_get_alone_and_leaves_no_page(
    make_decoder, alone, requests, spare_pages, page_size, budget, kv_tokens, context, every, events
):
    """Whatever the draft model has room for, how often it errs and what fails; preempted ones come back to it."""
    longest = max(len(prompt) + tokens for prompt, tokens, _, _ in requests)
    draft = Erring(make_decoder(kv_tokens, page_size, budget), every)
    drafts = Drafts(make_decoder(longest + spare_pages * 4, 4, 16), draft, context=min(context, kv_tokens))
    run, submitted = drafts.run, []

    for step in range(21):
        submitted += [
            (run.submit(prompt, max_tokens=tokens, temperature=heat, seed=9), prompt, tokens, heat)
            for prompt, tokens, heat, arrival in requests
            if arrival == step
        ]
        match events.get(step):
            case "cancel" if submitted:
                run.engine.cancel(submitted[step % len(submitted)][0])
            case "fail":
                run.executable.fail_once(RuntimeError())
            case "fail draft":
                drafts.executable.fail_once(RuntimeError())
            case "interrupt draft":
                drafts.executable.fail_once(KeyboardInterrupt())
            case "score":
                with contextlib.suppress(RuntimeError):
                    run.engine.teacher_forced(np.arange(longest), 5, False, lambda logits: None)
        with contextlib.suppress(KeyboardInterrupt):
            run.engine.step()
    with contextlib.suppress(KeyboardInterrupt):  # one that no step has met yet
        drafts.finish()
    drafts.finish()
    for request, prompt, tokens, heat in submitted:
        expected = alone(prompt, max_tokens=tokens, temperature=heat, seed=9)
        assert run.ids(request) == expected[: len(run.ids(request))]
        assert (request.finish_reason == "length") == (run.ids(request) == expected)
        assert events or request.finish_reason == "length"


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_twice(make_decoder):
    drafts = Drafts(make_decoder(), make_decoder())
    shared = list(range(100, 140))
    first_steps = []
    for end in ([7], [8]):
        drafts.run.submit([*shared, *end], max_tokens=6)
        before = len(drafts.executable.steps)
        drafts.finish()
        first_steps.append(drafts.executable.steps[before])
    assert first_steps == [[(0, 42)], [(40, 1)]]


def test_a_long_prompt_is_read_in_steps_of_its_own_batch_and_keeps_nobody_waiting(make_decoder):
    drafts = Drafts(make_decoder(), make_decoder(max_batch_tokens=16))
    long, short = drafts.run.submit(list(range(40)), max_tokens=20), drafts.run.submit([1, 2], max_tokens=20)
    drafts.finish()
    assert drafts.executable.steps[0] == [(0, 3), (0, 13)]  # the short one is read to its end first
    assert max(sum(new for _, new in step) for step in drafts.executable.steps) <= 16
    assert len(drafts.run.executable.steps) < 20
    assert {long.finish_reason, short.finish_reason} == {"length"}


def test_a_model_that_is_never_right_is_soon_asked_less_and_still_now_and_then(make_decoder):
    drafts = Drafts(make_decoder(), Erring(make_decoder(), every=1), SpeculationOptions())
    drafts.run.submit([5, 6], max_tokens=200)
    drafts.finish()
    counters = drafts.run.engine.counters
    assert counters.accepted_tokens == 0
    assert 5 < counters.drafted_tokens < 60
    assert len(drafts.run.executable.steps) == 200


def test_of_right_drafts_that_the_target_had_no_room_for_the_rest_is_drafted_again(make_decoder, alone):
    drafts = Drafts(make_decoder(), make_decoder())
    request = drafts.run.submit([5, 17, 200])
    expected = alone([5, 17, 200])
    assert drafts.drafter.propose({request: 4})[request] == expected[:4]
    request.tokens[request.length] = expected[0]
    request.length += 1
    assert drafts.drafter.propose({request: 4})[request] == expected[1:5]
    assert drafts.executable.steps[4] == [(3, 1)]


def test_a_failing_draft_model_ends_the_requests_of_the_step_and_the_next_go_on(make_decoder, alone):
    drafts = Drafts(make_decoder(), make_decoder())

    def fail(index: int) -> None:
        raise RuntimeError("lost")

    drafts.executable.before_step = fail
    failed = drafts.run.submit([1, 2, 3])
    drafts.finish()
    assert failed.finish_reason == "error"
    assert str(drafts.run.pieces[failed][-1].error) == "lost"
    drafts.executable.before_step = lambda index: None
    request = drafts.run.submit([1, 2, 3])
    drafts.finish()
    assert drafts.run.ids(request) == alone([1, 2, 3])


@pytest.fixture(scope="module")
def own_draft(cpu_artifact) -> Model:
    loaded = load(cpu_artifact.path, kv_tokens=1024, draft=cpu_artifact.path, speculation=SpeculationOptions(drafts=4))
    assert isinstance(loaded, Model)
    return loaded


@needs_cpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_model_says_the_same_with_a_draft(cpu_artifact, own_draft, temperature):
    counters = own_draft.engine.counters
    drafted, accepted = counters.drafted_tokens, counters.accepted_tokens
    params = {"max_tokens": 60, "temperature": temperature, "seed": 4, "ignore_eos": True, "top_p": 0.95}
    with load(cpu_artifact.path, kv_tokens=1024) as plain:
        assert isinstance(plain, Model)
        said = [model.generate("The sea was calm and", **params).token_ids for model in (plain, own_draft)]
    assert said[0] == said[1]
    drafted, accepted = counters.drafted_tokens - drafted, counters.accepted_tokens - accepted
    assert drafted > 0
    assert (accepted == drafted) == (temperature == 0)
    assert own_draft.engine.free_pages == own_draft.engine.page_count


@needs_cpu
def test_several_requests_at_once_get_what_they_get_alone(cpu_artifact, own_draft):
    prompts = ["One, two,", "The sea was calm and", "def add(a, b):"]
    params = SamplingParams(max_tokens=24, temperature=0.8, seed=3, ignore_eos=True)
    with load(cpu_artifact.path, kv_tokens=1024) as plain:
        assert isinstance(plain, Model)
        alone = [plain.generate(prompt, max_tokens=24, temperature=0.8, seed=3, ignore_eos=True) for prompt in prompts]
    together = [own_draft.request(prompt, params, lambda piece: None) for prompt in prompts]
    for request in together:
        own_draft.engine.submit(request)
    while own_draft.engine.step():
        pass
    assert [request.completion_ids for request in together] == [generation.token_ids for generation in alone]


def test_a_draft_of_other_tokens_is_refused_before_anything_is_loaded(tiny_artifact, tokenizer_file, tmp_path):
    tokenizer = json.loads(tokenizer_file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    other = write_tiny(tmp_path / "other.aicc", 49152, json.dumps(tokenizer)).path
    with pytest.raises(UsageError, match=r"other.aicc cannot draft for .*tiny.aicc: their tokenizers differ in 4"):
        load(tiny_artifact, draft=other)


def test_another_file_of_the_same_tokens_is_no_other_tokenizer(tiny_artifact, tokenizer_file, tmp_path):
    same = write_tiny(tmp_path / "same.aicc", 49152, json.dumps(json.loads(tokenizer_file.read_text()), indent=1)).path
    with load(tiny_artifact, draft=same) as model, load(tiny_artifact) as plain:
        assert isinstance(model, Model)
        assert isinstance(plain, Model)
        options = {"max_tokens": 30, "ignore_eos": True}
        assert model.generate("One", **options).token_ids == plain.generate("One", **options).token_ids
        assert model.engine.counters.accepted_tokens > 0


def test_what_cannot_draft_is_refused(tiny_artifact, encoder_artifact, tmp_path):
    bare = write_tiny(tmp_path / "bare.aicc", 300).path
    for artifact, draft, words in [
        (tiny_artifact, encoder_artifact.path, "is no language model"),
        (encoder_artifact.path, tiny_artifact, "is no language model"),
        (tiny_artifact, bare, "bare.aicc has no tokenizer"),
        (tiny_artifact, tmp_path / "none.aicc", "none.aicc"),
    ]:
        with pytest.raises(UsageError, match=words):
            load(artifact, draft=draft)
    with pytest.raises(UsageError, match="exclude each other"):
        load(tiny_artifact, draft=tiny_artifact, reproducible=True)
