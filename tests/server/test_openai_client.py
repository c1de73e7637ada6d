"""The official client, unmodified, gets what it expects and what the model says."""

import asyncio
from typing import Any

import numpy as np
import openai
import pytest
from live_server import NAME

from aicc.runtime.generator import Model

MESSAGES: list[Any] = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 12}


def test_a_chat_is_what_the_model_says_to_its_template(client: openai.OpenAI, model: Model) -> None:
    ids = model.chat_ids(MESSAGES)
    expected = model.generate(ids, max_tokens=12)

    answer = client.chat.completions.create(messages=MESSAGES, **GREEDY)

    assert answer.object == "chat.completion"
    assert answer.model == NAME
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == len(ids) + len(expected.token_ids)


def test_a_stream_brings_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)

    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY))

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert len([delta for delta in deltas if delta.content]) > 5
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_a_stream_tells_its_usage_last_if_asked(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)

    *chunks, last = client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    )

    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_a_completion_continues_the_prompt_as_it_is(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate("The capital of France is", max_tokens=16)

    answer = client.completions.create(model=NAME, prompt="The capital of France is", temperature=0)

    assert answer.object == "text_completion"
    assert answer.choices[0].text == expected.text  # 16 tokens, as the API has it
    assert answer.choices[0].finish_reason == "length"


def test_a_completion_streams(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="One, two,", **GREEDY)

    chunks = list(client.completions.create(prompt="One, two,", stream=True, **GREEDY))

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_prompts_may_be_texts_or_token_ids_one_or_many(client: openai.OpenAI, model: Model) -> None:
    texts = ["Red, green,", "Once upon a time"]
    ids = [model.tokenizer.encode(text) for text in texts]
    alone = [client.completions.create(prompt=text, **GREEDY).choices[0].text for text in texts]

    many = client.completions.create(prompt=texts, **GREEDY)

    assert [choice.text for choice in many.choices] == alone
    assert [choice.index for choice in many.choices] == [0, 1]
    assert client.completions.create(prompt=ids[0], **GREEDY).choices[0].text == alone[0]
    assert [c.text for c in client.completions.create(prompt=ids, **GREEDY).choices] == alone
    assert many.usage is not None
    assert many.usage.prompt_tokens == sum(map(len, ids))


def test_choices_of_a_seed_differ_and_come_back_the_same(client: openai.OpenAI, model: Model) -> None:
    prompt = "My favourite animal is"

    def ask(seed: int) -> list[str]:
        answer = client.completions.create(
            model=NAME,
            prompt=prompt,
            max_tokens=8,
            temperature=1,
            seed=seed,
            n=3,
            extra_body={"top_k": 20, "ignore_eos": True},
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(model.tokenizer.encode(prompt))  # once, not for each choice
        assert answer.usage.completion_tokens == 24
        return [choice.text for choice in answer.choices]

    first, second, third = ask(seed=7)

    assert len({first, second, third}) == 3
    assert ask(seed=7) == [first, second, third]
    assert ask(seed=8)[:2] == [second, third]  # choice i has the seed + i


def test_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    text = client.completions.create(prompt="One, two, three, four,", **GREEDY).choices[0].text
    stop = text[len(text) // 2 :][:3]

    answer = client.completions.create(prompt="One, two, three, four,", stop=["\0", stop], **GREEDY)

    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logit_bias_and_extensions_reach_the_sampler(client: openai.OpenAI, model: Model) -> None:
    [token] = model.tokenizer.encode(" banana")[:1]

    biased = client.completions.create(prompt="I like", logit_bias={str(token): 100}, **GREEDY)
    narrow = client.completions.create(
        model=NAME, prompt="I like", temperature=2, max_tokens=12, extra_body={"top_k": 1, "min_p": 0.5}
    )

    assert biased.choices[0].text == model.tokenizer.decode([token]) * 12
    assert narrow.choices[0].text == client.completions.create(prompt="I like", **GREEDY).choices[0].text


def test_the_end_of_a_turn_is_a_stop_and_no_text(client: openai.OpenAI, model: Model) -> None:
    assert model.manifest.llm is not None
    end = model.manifest.llm.eos_token_ids[0]

    answer = client.chat.completions.create(messages=MESSAGES, logit_bias={str(end): 100}, logprobs=True, **GREEDY)

    assert answer.choices[0].message.content == ""
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_name_each_token_and_the_likeliest(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, stream=stream, **GREEDY
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join((c.delta.content or "") if stream else c.message.content for c in choices)

    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]

    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        assert len(token.top_logprobs) == 2
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0


def test_logprobs_of_a_completion_are_parallel_lists(client: openai.OpenAI) -> None:
    choice = client.completions.create(prompt="Red, green,", logprobs=3, **GREEDY).choices[0]

    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
    assert "".join(tokens) == choice.text
    assert [choice.text[at : at + len(token)] for token, at in zip(tokens, offsets, strict=True)] == tokens
    assert all(len(top) == 3 for top in choice.logprobs.top_logprobs or [])


def test_text_parts_and_developer_are_text_and_system(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": MESSAGES[0]["content"]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is the ", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "capital of France?"},
            ],
        },
    ]

    answers = [client.chat.completions.create(messages=messages, **GREEDY) for messages in (MESSAGES, parts)]

    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    usages = [answer.usage for answer in answers]
    assert all(usage is not None for usage in usages)
    assert usages[0].prompt_tokens == usages[1].prompt_tokens


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message

    again: list[Any] = [*MESSAGES, first, {"role": "user", "content": "Are you sure?"}]
    second = client.chat.completions.create(messages=again, **GREEDY)

    assert second.choices[0].message.content


def test_the_one_model_is_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_is_the_prompt_with_its_log_probabilities(client: openai.OpenAI, model: Model, stream: bool) -> None:
    prompt = "The capital of France is"
    ids = model.tokenizer.encode(prompt)

    answer: Any = client.completions.create(prompt=prompt, echo=True, logprobs=2, n=2, stream=stream, **GREEDY)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices

    for index in range(2):
        parts = [choice for choice in choices if choice.index == index]
        text = "".join(part.text for part in parts)
        assert text.startswith(prompt)
        assert len(text) > len(prompt)
        told = [part.logprobs for part in parts if part.logprobs]
        tokens = [token for each in told for token in each.tokens]
        offsets = [offset for each in told for offset in each.text_offset]
        values = [value for each in told for value in each.token_logprobs]
        assert tokens[: len(ids)] == [model.tokenizer.decode([id]) for id in ids]
        assert [text[at : at + len(token)] for at, token in zip(offsets, tokens, strict=True)] == tokens
        assert values[0] is None
        assert all(value <= 0 for value in values[1:])


def test_an_echo_alone_scores_a_prompt(client: openai.OpenAI, model: Model) -> None:
    prompt = "One, two, three, four"
    logits = model.logits(model.tokenizer.encode(prompt))
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    answer = client.completions.create(model=NAME, prompt=prompt, echo=True, logprobs=1, max_tokens=0)

    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (prompt, "length")
    assert choice.logprobs is not None
    ids = model.tokenizer.encode(prompt)
    found = (choice.logprobs.token_logprobs or [])[1:]
    np.testing.assert_allclose(found, [expected[i, id] for i, id in enumerate(ids[1:])], atol=0.02)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)


def test_usage_tells_what_was_in_memory_already(client: openai.OpenAI) -> None:
    prompt = "A long beginning that two requests share, " * 30

    cached = []
    for end in ("one.", "two."):
        usage = client.completions.create(prompt=prompt + end, **GREEDY).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == 0
        cached.append(usage.prompt_tokens_details.cached_tokens)

    assert cached[0] == 0
    assert 100 < cached[1] < usage.prompt_tokens


async def stream_text(client: openai.AsyncOpenAI, prompt: str) -> str:
    stream = await client.completions.create(prompt=prompt, stream=True, **GREEDY)
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_eight_streams_at_once_say_what_each_says_alone(url: str, client: openai.OpenAI) -> None:
    # Counting leaves no near ties, which rounding differently for eight rows than for one could tip.
    prompts = [f"Count: {', '.join(map(str, range(start, start + 6)))}," for start in range(8)]
    alone = [client.completions.create(prompt=prompt, **GREEDY).choices[0].text for prompt in prompts]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream_text(client, prompt) for prompt in prompts))

    assert asyncio.run(all_at_once()) == alone
