"""Drafts make several tokens in a step, and never another token than without them."""

import json

import numpy as np
import pytest
from engine_run import EOS, Run
from hypothesis import given
from hypothesis import strategies as st

from aicc.runtime import Model, SamplingParams, load
from aicc.runtime.errors import UsageError
from aicc.runtime.machine import processor
from aicc.runtime.speculation import PromptLookup, SpeculationOptions
from aicc.runtime.target import find_target

EAGER = SpeculationOptions(drafts=5, match=1, token_cost=0.001)  # drafts whatever has stood in the text


def proposed(tokens: list[int], most: int = 8, **options) -> list[int]:
    lookup = PromptLookup(SpeculationOptions(**options), prompt_length=len(tokens))
    return lookup.propose(np.array(tokens, np.int64), most, sequences=1).tolist()


def test_what_followed_the_last_tokens_when_they_stood_there_last_is_drafted():
    assert proposed([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3]) == [6, 7]  # at a rate of one half two are worth it
    assert proposed([1, 2, 3, 4, 9, 2, 3]) == []
    assert proposed([1, 2, 3, 4, 9, 2, 3], match=2, token_cost=0.1) == [4, 9, 2]
    assert proposed([5, 1, 2, 1, 2], match=2, token_cost=0.03) == [1, 2, 1, 2, 1]  # a period goes on
    assert proposed([1], most=8) == []
    assert proposed([1, 1, 1, 1, 1, 1], most=1) == [1]
    assert proposed([1, 1, 1, 1, 1, 1], most=-1) == []


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 4), st.integers(1, 9))
def test_a_draft_has_stood_after_the_same_tokens(tokens, match, step):
    """However the tokens come, one or several at a time."""
    lookup = PromptLookup(SpeculationOptions(match=match, token_cost=0.01), prompt_length=0)
    for length in [*range(1, len(tokens), step), len(tokens)]:
        given = tokens[:length]
        draft = lookup.propose(np.array(given, np.int64), 3, sequences=1).tolist()
        follows = {given[i + match] for i in range(length - match) if given[i : i + match] == given[length - match :]}
        assert not draft or draft[0] in follows
        assert draft or not follows or min(matches.rate for matches in lookup._matches) < 0.02


def test_drafts_that_are_never_right_are_soon_not_tried_and_right_ones_become_longer():
    options = SpeculationOptions(match=1)
    wrong, right = PromptLookup(options, prompt_length=0), PromptLookup(options, prompt_length=0)
    rng = np.random.default_rng(0)
    text = np.concatenate([[0, i] for i in rng.permutation(np.arange(1, 60))])  # 0 is followed by something new
    assert len(wrong.propose(text[:5], 8, 1))
    assert not len(wrong.propose(text[:41], 8, 1))
    period = np.tile(np.arange(5), 20)
    assert len(right.propose(period[:7], 8, 1)) < len(right.propose(period, 8, 1)) == 8


def test_the_more_sequences_share_a_step_the_surer_a_draft_must_be():
    options = SpeculationOptions()
    counts = [options.worthwhile(0.8, sequences) for sequences in (1, 2, 4, 16, 64)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 3
    assert counts[-1] == 0
    assert options.worthwhile(1.0, 64) == options.drafts


@pytest.mark.parametrize(
    ("field", "value"), [("drafts", 0), ("drafts", 65), ("match", 0), ("token_cost", 0.0), ("token_cost", 1.5)]
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        SpeculationOptions(**{field: value})


def test_a_step_makes_as_many_tokens_as_drafts_were_right_and_one_more(make_decoder, alone):
    run = Run(make_decoder(), speculation=EAGER)
    bias = {7: 100}  # says 7 and nothing else
    request = run.submit([7, 7], max_tokens=16, logit_bias=bias)
    run.finish()
    assert run.ids(request) == [7] * 16
    assert run.executable.steps[:3] == [[(0, 2)], [(2, 6)], [(8, 6)]]
    assert run.executable.steps[-1] == [(14, 3)]  # no more drafts than tokens are still allowed
    counters = run.engine.counters
    assert (counters.drafted_tokens, counters.accepted_tokens) == (12, 12)


def test_wrong_drafts_are_written_over(make_decoder, alone):
    run = Run(make_decoder(page_size=2), speculation=EAGER)
    prompt = [5, 6] * 10
    request = run.submit(prompt, max_tokens=30)
    run.finish()
    assert run.ids(request) == alone(prompt, max_tokens=30)
    assert run.engine.counters.drafted_tokens > run.engine.counters.accepted_tokens
    again = run.submit([*prompt, *run.ids(request)], max_tokens=5)  # over pages that drafts were in
    run.finish()
    assert again.cached_prompt_tokens > 40
    assert run.ids(again) == alone([*prompt, *run.ids(request)], max_tokens=5)


def test_the_end_of_a_text_among_drafts_is_its_end(make_decoder):
    run = Run(make_decoder(), speculation=EAGER)
    request = run.submit([EOS] * 6, ignore_eos=False, logit_bias={EOS: 100})
    run.finish()
    assert (run.ids(request), request.finish_reason) == ([EOS], "stop")


def test_no_drafts_where_pages_are_short_and_nobody_is_evicted_for_them(make_decoder, alone):
    run = Run(make_decoder(kv_tokens=24, page_size=2), speculation=EAGER)
    prompts = [[7, 7], [8, 8]]
    requests = [run.submit(prompt, max_tokens=10, logit_bias={prompt[0]: 100}) for prompt in prompts]
    run.finish()
    assert [run.ids(r) for r in requests] == [[7] * 10, [8] * 10]
    assert run.engine.counters.preemptions == 0


@pytest.fixture(scope="module")
def drafting(tiny_artifact) -> Model:
    loaded = load(tiny_artifact, speculation=EAGER)
    assert isinstance(loaded, Model)
    return loaded


OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 5},
    "penalties": {"presence_penalty": 2.0, "frequency_penalty": 3.0, "logit_bias": {100: 60, 200: 60, 300: 60}},
    "bias": {"temperature": 1.0, "seed": 3, "logit_bias": {100: 60, 200: 60}},
    "logprobs": {"logprobs": 3, "logit_bias": {100: 60}},
    "stop": {"stop": ["AAAA"], "logit_bias": {49: 100}},
    "prompt_logprobs": {"prompt_logprobs": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_everything_a_request_may_ask_is_the_same_with_drafts(model, drafting, name):
    params = {"max_tokens": 40, "ignore_eos": True, **OPTIONS[name]}
    counters = drafting.engine.counters
    drafted_before, accepted_before = counters.drafted_tokens, counters.accepted_tokens
    plain, drafted = (list(m.stream("A B C A B C A B C", **params)) for m in (model, drafting))
    said = [[(p.text, p.token_ids, p.finish_reason) for p in pieces] for pieces in (plain, drafted)]
    assert said[0] == said[1]
    assert (plain[-1].finish_reason == "stop") == ("stop" in params)
    if "logprobs" in params:
        told = [
            [x for p in pieces for x in (p.logprobs.token, *dict(p.logprobs.top).values())]
            for pieces in (plain, drafted)
        ]
        assert told[0] == pytest.approx(told[1], abs=1e-3)
    assert counters.drafted_tokens > drafted_before or name == "sampled"
    assert counters.accepted_tokens > accepted_before or "logit_bias" not in params
    assert drafting.engine.free_pages == drafting.engine.page_count


def test_a_constrained_text_is_the_same_with_drafts(model, drafting):
    schema = {"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 6, "maxItems": 12}
    texts = []
    for m in (model, drafting):
        generation = m.generate("List:", m.constraint("json_schema", schema), max_tokens=150, temperature=1.0, seed=2)
        texts.append(generation.text)
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0])) <= {"one", "two"}


@pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_real_model_says_the_same_and_takes_fewer_steps(cpu_artifact, temperature):
    prompt = "".join(f"{i}. apples, {i}. pears, " for i in range(1, 9))
    said, steps = [], []
    for speculation in (None, SpeculationOptions()):
        with load(cpu_artifact.path, kv_tokens=1024, speculation=speculation) as model:
            assert isinstance(model, Model)
            pieces: list = []
            params = SamplingParams(max_tokens=60, temperature=temperature, seed=4, ignore_eos=True)
            request = model.request(prompt, params, pieces.append)
            model.engine.submit(request)
            steps.append(0)
            while model.engine.step():
                steps[-1] += 1
            said.append(request.completion_ids)
    assert said[0] == said[1]
    assert steps[1] < 0.8 * steps[0]
