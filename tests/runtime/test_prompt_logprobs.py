"""Log-probabilities of a prompt's own tokens are those of the whole text, however it is cut."""

import numpy as np
import pytest

from aicc.runtime import Model, load
from aicc.runtime import request as request_module
from aicc.runtime.sampling import SamplingParams


def read(model, ids, top, **params):
    pieces = []
    params = SamplingParams(prompt_logprobs=top, **params)
    request = model.request(ids, params, pieces.append)
    model.engine.submit(request)
    while model.engine.step():
        pass
    return request, pieces


def expected(model, ids):
    logits = model.logits(ids).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 2, 17, 250])
def test_each_token_has_the_one_that_the_tokens_before_it_give(model, count):
    ids = np.random.default_rng(1).integers(0, 49152, count).tolist()
    whole = expected(model, ids)
    request, pieces = read(model, ids, 2, max_tokens=0)
    assert [(piece.token_ids, piece.finish_reason) for piece in pieces] == [((), "length")]
    first, *rest = request.prompt_logprobs
    assert first is None
    assert len(rest) == count - 1
    for i, told in enumerate(rest):
        assert told.token == pytest.approx(whole[i, ids[i + 1]], abs=1e-3)
        assert [p for _, p in told.top] == pytest.approx(np.sort(whole[i])[:-3:-1].tolist(), abs=1e-3)
    assert model.engine.free_pages == model.engine.page_count


def test_a_step_never_makes_more_logits_than_it_may(model, monkeypatch):
    monkeypatch.setattr(request_module, "_PROMPT_LOGITS", 20 * 4 * 49152)
    ids = list(range(100, 170))
    rows, forward = [], model._executable.forward
    monkeypatch.setattr(
        model._executable, "forward", lambda batch: rows.append(len(batch.logit_rows)) or forward(batch)
    )
    request, _ = read(model, ids, 0, max_tokens=3, ignore_eos=True)
    assert rows == [20, 20, 20, 10, 1, 1]
    assert request.completion_ids == model.generate(ids, max_tokens=3, ignore_eos=True).token_ids
    whole = expected(model, ids)
    assert [told.token for told in request.prompt_logprobs[1:]] == pytest.approx(
        [whole[i, ids[i + 1]] for i in range(69)], abs=1e-3
    )


def test_they_are_complete_before_the_first_token_and_read_once(model):
    ids, seen = list(range(40)), []
    request = model.request(
        ids,
        SamplingParams(prompt_logprobs=1, max_tokens=5, ignore_eos=True),
        lambda piece: seen.append(len(request.prompt_logprobs)),
    )
    model.engine.submit(request)
    model.engine.step()
    model.logits([1, 2, 3])  # computes again what is running
    while model.engine.step():
        pass
    assert seen == [40] * 5


def test_a_prompt_that_fills_the_context_has_them_too(model):
    ids = list(range(model.context_length))
    request, pieces = read(model, ids, 0)
    assert len(request.prompt_logprobs) == len(ids)
    assert [piece.finish_reason for piece in pieces] == ["length"]


def test_of_the_real_model(demo_artifact):
    with load(demo_artifact.path) as model:
        assert isinstance(model, Model)
        ids = model.tokenizer.encode("The capital of France is Paris.")
        whole = expected(model, ids)
        request, _ = read(model, ids, 1, max_tokens=0)
        told = request.prompt_logprobs
    assert [t.token for t in told[1:]] == pytest.approx([whole[i, ids[i + 1]] for i in range(len(ids) - 1)], abs=1e-3)
