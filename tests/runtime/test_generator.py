"""A loaded model of tokens, as other programs use it."""

import threading

import numpy as np
import pytest
from tiny_decoder import CONTEXT, write_tiny

from aicc.runtime import Piece, load
from aicc.runtime.errors import ContextLengthError, UnsupportedError, UsageError

PROMPT = "The capital of France is"


def test_a_text_is_its_tokens_and_no_template_is_put_around_it(model):
    ids = model.tokenizer.encode(PROMPT)
    assert model.generate(PROMPT, max_tokens=5).token_ids == model.generate(ids, max_tokens=5).token_ids


def test_prompts_may_be_arrays(model):
    assert model.generate(np.array([1, 2]), max_tokens=3).token_ids == model.generate([1, 2], max_tokens=3).token_ids


def test_greedy_tokens_are_the_most_likely_ones_of_the_models_logits(model):
    generation = model.generate([5, 6, 7], max_tokens=12, ignore_eos=True)
    logits = model.logits([5, 6, 7, *generation.token_ids])
    assert logits.shape == (15, 49152)
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1)[2:-1].tolist() == generation.token_ids


def test_logits_of_a_long_text_do_not_depend_on_how_it_is_cut(model):
    ids = list(range(100, 300))
    np.testing.assert_allclose(model.logits(ids)[:50], model.logits(ids[:50]), rtol=1e-3, atol=1e-3)


def test_a_generation_tells_its_text_tokens_reason_and_timings(model):
    generation = model.generate(PROMPT, max_tokens=8, ignore_eos=True)
    assert generation.text == model.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
    assert len(generation.token_ids) == 8
    assert generation.finish_reason == "length"
    assert (generation.timings.prompt_tokens, generation.timings.completion_tokens) == (5, 8)
    assert generation.timings.decode_tokens_per_s > 0


def test_the_same_seed_gives_the_same_text_and_another_gives_another(model):
    def text(seed: int) -> str:
        return model.generate(PROMPT, max_tokens=12, temperature=1.0, top_p=0.95, seed=seed).text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_stream_gives_the_text_and_tokens_of_the_generation_in_pieces(model):
    generation = model.generate(PROMPT, max_tokens=20, temperature=1.0, seed=3)
    pieces = list(model.stream(PROMPT, max_tokens=20, temperature=1.0, seed=3))
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == generation.text
    assert [token for piece in pieces for token in piece.token_ids] == generation.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [generation.finish_reason]


def test_a_stop_string_ends_the_text_before_it(model):
    whole = model.generate(PROMPT, max_tokens=20, ignore_eos=True).text
    stop = whole[10:13]
    generation = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stop=[stop])
    assert generation.text == whole[: whole.find(stop)]
    assert generation.finish_reason == "stop"


def test_closing_a_stream_frees_its_memory_at_once(model):
    stream = model.stream(PROMPT, max_tokens=100)
    next(stream)
    assert model.engine.free_pages < model.engine.page_count
    stream.close()
    assert model.engine.free_pages == model.engine.page_count


def test_a_stream_nobody_began_costs_nothing(model):
    model.stream(PROMPT)
    assert not model.engine.step()


def test_streams_may_be_read_in_turns(model):
    alone = [[p.token_ids for p in model.stream([i, 9], max_tokens=8, ignore_eos=True)] for i in (3, 4)]
    streams = [model.stream([i, 9], max_tokens=8, ignore_eos=True) for i in (3, 4)]
    turns = [[piece.token_ids for piece in turn] for turn in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*turns, strict=True)] == alone


def test_threads_may_share_a_model(model):
    expected = {i: model.generate([i, i], max_tokens=10).token_ids for i in range(6)}
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: model.generate([i, i], max_tokens=10).token_ids}))
        for i in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_ctrl_c_leaves_the_model_usable(model, monkeypatch):
    expected = model.generate(PROMPT, max_tokens=8).token_ids
    forward = model._executable.forward
    steps = iter(range(100))

    def interrupted(batch):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(model._executable, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, max_tokens=8)
    assert model.engine.free_pages == model.engine.page_count
    assert model.generate(PROMPT, max_tokens=8).token_ids == expected


def test_conversations_become_the_template_tokenised(model, golden):
    case = next(case for case in golden if case["kind"] == "chat")
    assert model.chat_ids([{"role": "user", "content": case["text"]}]) == case["prompt_ids"]
    ended = model.chat_ids([{"role": "user", "content": case["text"]}], add_generation_prompt=False)
    assert case["prompt_ids"][: len(ended)] == ended


@pytest.mark.parametrize("prompt", ["", [], np.array([], np.int64)])
def test_an_empty_prompt_is_refused(model, prompt):
    with pytest.raises(UsageError, match="empty"):
        model.generate(prompt)


@pytest.mark.parametrize("prompt", [[-1], [49152], [1, 10**9]])
def test_ids_the_model_does_not_have_are_refused(model, prompt):
    with pytest.raises(UsageError, match="ids are 0 to 49151"):
        model.generate(prompt)


@pytest.mark.parametrize("prompt", [[1.5], ["a"], [[1]], [True], None])
def test_what_is_no_prompt_is_refused(model, prompt):
    with pytest.raises(UsageError, match="text or a list of token ids"):
        model.generate(prompt)


def test_a_prompt_longer_than_the_context_is_refused_and_not_cut(model):
    with pytest.raises(ContextLengthError) as caught:
        model.stream([1] * (CONTEXT + 1))  # at the call, before anybody asks for a piece
    assert (caught.value.prompt_tokens, caught.value.context_length) == (CONTEXT + 1, CONTEXT)


def test_generation_ends_at_the_end_of_the_context(model):
    generation = model.generate([1] * (CONTEXT - 3), max_tokens=100, ignore_eos=True)
    assert len(generation.token_ids) == 3
    assert generation.finish_reason == "length"


def test_an_option_out_of_range_is_refused_at_the_call(model):
    with pytest.raises(UsageError, match="top_p"):
        model.stream(PROMPT, top_p=2.0)


def test_a_smaller_kv_memory_makes_a_smaller_context(tiny_artifact):
    with load(tiny_artifact, kv_tokens=32) as small:
        assert small.context_length == 32
        with pytest.raises(ContextLengthError):
            small.generate([1] * 33)


def test_a_model_without_a_tokenizer_takes_and_gives_tokens(tmp_path):
    with load(write_tiny(tmp_path / "bare.aicc", vocab=300).path) as bare:
        generation = bare.generate([1, 2], max_tokens=4, ignore_eos=True)
        assert (generation.text, len(generation.token_ids)) == ("", 4)
        for refused in (
            lambda: bare.generate("text"),
            lambda: bare.generate([1], stop=["x"]),
            lambda: bare.chat_ids([{"role": "user", "content": "hi"}]),
        ):
            with pytest.raises(UnsupportedError):
                refused()


def test_a_closed_model_says_so(tiny_artifact):
    closed = load(tiny_artifact)
    closed.close()
    closed.close()
    with pytest.raises(UsageError, match="closed"):
        closed.generate([1])
