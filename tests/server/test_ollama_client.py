"""Ollama's own client against the server, and what it would not send."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import NAME, health, listening

from aicc.runtime.artifact import Artifact
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import ApiKeys, Front, create_app
from aicc.runtime.server.ollama.conversation import chat_of, sampling_params
from aicc.runtime.server.ollama.schema import ChatRequest, Options
from aicc.runtime.session import Session

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 12}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(url: str) -> ollama.Client:
    return ollama.Client(host=url)


@pytest.fixture(scope="module")
def encoder_url(encoder: Session) -> Iterator[str]:
    with listening(create_app({"minilm": encoder})) as url:
        yield url


def refused(url: str, path: str, body: Any) -> str:
    """The message of a 400."""
    answer = httpx.post(f"{url}/api/{path}", json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    message = answer.json()["error"]
    assert isinstance(message, str)
    return message


def test_a_chat_says_what_the_model_says(client: ollama.Client, model: Model) -> None:
    answer = client.chat(NAME, MESSAGES, options=GREEDY)

    ids = model.chat_ids(MESSAGES)
    assert answer.message.role == "assistant"
    assert answer.message.content == model.generate(ids, temperature=0, max_tokens=12).text
    assert (answer.model, answer.done, answer.prompt_eval_count) == (NAME, True, len(ids))
    assert answer.done_reason in ("stop", "length")
    assert 0 < (answer.eval_count or 0) <= 12
    assert 0 < (answer.prompt_eval_duration or 0) <= (answer.total_duration or 0)


def test_a_stream_brings_the_same_in_pieces(client: ollama.Client) -> None:
    whole = client.chat(NAME, MESSAGES, options=GREEDY)

    pieces = list(client.chat(NAME, MESSAGES, options=GREEDY, stream=True))

    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 3
    assert (pieces[-1].done_reason, pieces[-1].eval_count) == (whole.done_reason, whole.eval_count)


def test_what_names_no_way_to_answer_is_streamed(url: str) -> None:
    answer = httpx.post(f"{url}/api/generate", json={"model": NAME, "prompt": "One, two,", "options": GREEDY})

    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_a_prompt_is_what_the_user_says_and_a_raw_one_is_the_text(client: ollama.Client, model: Model) -> None:
    said = client.generate(NAME, "Name a colour.", system="You are terse.", options=GREEDY)
    raw = client.generate(NAME, "One, two, three,", raw=True, options=GREEDY)

    turns = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name a colour."}]
    assert said.response == model.generate(model.chat_ids(turns), temperature=0, max_tokens=12).text
    assert raw.response == model.generate("One, two, three,", temperature=0, max_tokens=12).text


def test_json_and_schemas_are_enforced(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    options = {"temperature": 0, "num_predict": 200}

    for answer in (
        client.chat(NAME, MESSAGES, format=schema, options=options).message.content,
        client.generate(NAME, "Where?", format=schema, options=options).response,
        client.generate(NAME, "Where?", raw=True, format=schema, options=options).response,
    ):
        assert json.loads(answer or "")["city"] in ("Paris", "Rome")
    answer = client.generate(NAME, 'Say {"a": 1} and nothing else.', format="json", options=options)
    assert answer.done_reason == "length" or isinstance(json.loads(answer.response or ""), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole_and_one_that_is_cut_off_does_not(client: ollama.Client, model: Model, stream: bool) -> None:
    # The format leaves the model nothing else to say than null, or calls.
    question = [{"role": "user", "content": "What is the weather in Paris?"}]

    def ask(most: int) -> list[ollama.ChatResponse]:
        options = GREEDY | {"num_predict": most}
        answers = client.chat(NAME, question, tools=[WEATHER], format={"type": "null"}, options=options, stream=stream)
        return list(answers) if stream else [answers]

    *whole, last = [called(call) for part in ask(400) for call in part.message.tool_calls or []]
    spoken = "\n".join([*map(spelled, whole), spelled(last).partition(': {"')[0]])  # before its first argument
    parts = ask(len(model.tokenizer.encode(spoken)) + 3)

    assert [called(call) for part in parts for call in part.message.tool_calls or []] == whole
    assert "".join(part.message.content or "" for part in parts) == ""
    assert parts[-1].done_reason == "length"


def called(call: ollama.Message.ToolCall) -> dict[str, Any]:
    return {"name": call.function.name, "arguments": dict(call.function.arguments)}


def spelled(call: dict[str, Any]) -> str:
    """A call as this model writes it and reads it."""
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_the_model_reads_its_calls_and_their_results_where_they_were_said(client: ollama.Client, model: Model) -> None:
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Rome")]
    asked: list[Any] = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls]},
        {"role": "tool", "content": "11 degrees", "tool_name": "get_weather"},
        {"role": "tool", "content": "19 degrees", "tool_name": "get_weather"},
        {"role": "user", "content": "Which is warmer?"},
    ]
    read = [
        *MESSAGES,
        {"role": "assistant", "content": "\n".join(map(spelled, calls))},
        {
            "role": "user",
            "content": "<tool_response>\n11 degrees\n</tool_response>\n<tool_response>\n19 degrees\n</tool_response>",
        },
        {"role": "user", "content": "Which is warmer?"},
    ]
    ids = model.chat_ids(read)

    answer = client.chat(NAME, asked, options=GREEDY)

    assert answer.prompt_eval_count == len(ids)
    assert answer.message.content == model.generate(ids, temperature=0, max_tokens=12).text


def test_results_are_told_apart_by_id_name_or_order() -> None:
    calls = [
        {"id": "a", "function": {"name": "time", "arguments": {}}},
        {"function": {"name": "weather", "arguments": {"city": "Paris"}}},
        {"function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"id": "b", "function": {"name": "time", "arguments": {}}},
    ]
    results = [
        {"tool_name": "weather", "content": "11 degrees in Paris"},
        {"tool_call_id": "b", "content": "six"},
        {"content": "five"},
        {"tool_name": "weather", "content": "19 degrees in Rome"},
        {"tool_call_id": "c", "content": "of a call that is not here"},
    ]
    turns = [{"role": "assistant", "tool_calls": calls}, *({"role": "tool", **result} for result in results)]

    first, *others = chat_of(msgspec.convert({"model": NAME, "messages": turns}, ChatRequest)).messages

    ids = [call["id"] for call in first["tool_calls"]]
    assert [(call["name"], call["arguments"]) for call in first["tool_calls"]] == [
        ("time", {}),
        ("weather", {"city": "Paris"}),
        ("weather", {"city": "Rome"}),
        ("time", {}),
    ]
    assert len(set(ids)) == 4
    assert [(turn["content"], turn["tool_call_id"]) for turn in others] == [
        ("11 degrees in Paris", ids[1]),
        ("six", "b"),
        ("five", "a"),
        ("19 degrees in Rome", ids[2]),
        ("of a call that is not here", "c"),
    ]


def test_models_are_listed_shown_and_running(client: ollama.Client, model: Model, url: str) -> None:
    [listed], [running] = client.list().models, client.ps().models
    shown = client.show(NAME)

    assert listed.model == running.model == running.name == NAME
    assert listed.digest == running.digest
    assert listed.size == running.size == sum(file.bytes for file in model.manifest.files)
    assert running.context_length == model.context_length
    assert shown.template == model.chat_template.source
    assert shown.capabilities == ["completion", "tools"]
    info = shown.modelinfo or {}
    assert info[f"{info['general.architecture']}.context_length"] == model.context_length
    assert httpx.get(f"{url}/api/version").json()["version"]


def test_an_encoder_makes_the_vectors_it_makes(encoder_url: str, encoder: Session) -> None:
    client, texts = ollama.Client(host=encoder_url), ["A cat sleeps.", "Stocks fell."]

    many, one = client.embed("minilm", texts), client.embed("minilm", texts[1])

    np.testing.assert_allclose(many.embeddings, encoder.embedder.embed(texts), atol=1e-5)
    np.testing.assert_allclose(one.embeddings[0], many.embeddings[1], atol=1e-5)
    assert many.prompt_eval_count == sum(len(encoder.embedder.tokenize(text)) for text in texts)
    assert client.show("minilm").capabilities == ["embedding"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"truncate": True}, "'truncate'"),
        ({"dimensions": 5}, "'dimensions'"),
        ({"options": {"temperature": 1}}, "'options.temperature'"),
        ({"input": []}, "'input'"),
        ({"input": ["a", "word " * 300]}, "'input[1]'"),
    ],
)
def test_what_cannot_be_embedded_is_a_400(encoder_url: str, change: dict[str, Any], names: str) -> None:
    assert names in refused(encoder_url, "embed", {"model": "minilm", "input": "Hi"} | change)
    assert health(encoder_url)["sequences"] == 0


@pytest.mark.parametrize(
    ("path", "change", "names"),
    [
        ("chat", {"think": False}, "'think'"),
        ("chat", {"logprobs": True}, "'logprobs'"),
        ("chat", {"messages": [{"role": "user", "content": "What?", "images": ["aGk="]}]}, "'messages[0].images'"),
        ("chat", {"messages": [{"role": "user", "content": "Hi", "tool_name": "f"}]}, "'messages[0].tool_name'"),
        ("chat", {"messages": [{"role": "user", "tool_calls": []}, {"role": "king"}]}, "'messages[1].role'"),
        ("chat", {"tools": [WEATHER, WEATHER]}, "'tools'"),
        ("chat", {"messages": []}, "'messages'"),
        ("chat", {"keep_alive": "5m"}, "'keep_alive'"),
        ("chat", {"keep_alive": 0}, "'keep_alive'"),
        ("chat", {"format": "yaml"}, "'format'"),
        ("chat", {"format": {"type": "object", "patternProperties": 5}}, "'format'"),
        ("chat", {"options": {"num_gpu": 1}}, "'options.num_gpu'"),
        ("chat", {"options": {"mirostat": 2}}, "'options.mirostat'"),
        ("chat", {"options": {"repeat_last_n": 64}}, "'options.repeat_last_n'"),
        ("chat", {"options": {"num_predict": 0}}, "'options.num_predict'"),
        ("chat", {"options": {"num_ctx": 10**6}}, "'options.num_ctx'"),
        ("chat", {"options": {"warmth": 2}}, "'options.warmth'"),
        ("chat", {"options": {"temperature": -1}}, "'options.temperature'"),
        ("generate", {"prompt": ""}, "'prompt'"),
        ("generate", {"prompt": "word " * 9000}, "'prompt'"),
        ("generate", {"prompt": "Hi", "suffix": "there"}, "'suffix'"),
        ("generate", {"prompt": "Hi", "template": "{{ .Prompt }}"}, "'template'"),
        ("generate", {"prompt": "Hi", "context": [1, 2]}, "'context'"),
        ("generate", {"prompt": "Hi", "images": ["aGk="]}, "'images'"),
        ("generate", {"prompt": "Hi", "raw": True, "system": "Be."}, "'system'"),
        ("show", {"name": NAME}, "'name'"),
    ],
)
def test_what_is_not_implemented_is_a_400_that_names_it(
    url: str, path: str, change: dict[str, Any], names: str
) -> None:
    base = {"model": NAME, "messages": MESSAGES} if path == "chat" else {"model": NAME}

    assert names in refused(url, path, base | change)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"model": "m", "messages": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"model": "smollm2", "messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"model":"smollm2","prompt":"a","format":' + b'{"not":' * 900 + b"{}" + b"}" * 900 + b"}", "format"),
    ],
)
@pytest.mark.parametrize("path", ["chat", "generate"])
def test_hostile_bodies_are_answered(url: str, path: str, body: bytes, says: str) -> None:
    if (b'"prompt"' in body) is (path == "chat"):
        body = body.replace(b'"prompt":"a"', b'"messages":[{"role":"user","content":"a"}]')
    answer = httpx.post(f"{url}/api/{path}", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_errors_are_what_the_client_reads(client: ollama.Client, url: str) -> None:
    with pytest.raises(ollama.ResponseError, match="'nobody' does not exist") as missing:
        client.chat("nobody", MESSAGES)
    with pytest.raises(ollama.ResponseError, match="Unknown path: DELETE /api/delete") as unknown:
        client.delete(NAME)
    with pytest.raises(ollama.ResponseError, match="'messages': the prompt has"):
        list(client.chat(NAME, [{"role": "user", "content": "word " * 9000}], stream=True))

    assert (missing.value.status_code, unknown.value.status_code) == (404, 404)
    assert httpx.get(f"{url}/api/chat").status_code == 405


def test_keys_are_needed_and_sent(executable: DecoderExecutable, demo_artifact: Artifact) -> None:
    model = Model(executable, demo_artifact)
    with listening(create_app({NAME: model}, front=Front(keys=ApiKeys([b"secret"])))) as url:
        with pytest.raises(ollama.ResponseError, match="needs an API key") as refused:
            ollama.Client(host=url).list()
        allowed = ollama.Client(host=url, headers={"Authorization": "Bearer secret"})

        assert refused.value.status_code == 401
        assert len(allowed.list().models) == 1


@given(
    st.builds(
        Options,
        num_predict=st.none() | st.integers(-2, 2**31 - 1).filter(bool),
        temperature=st.none() | st.floats(0, 100),
        top_k=st.none() | st.integers(0, 2**31 - 1),
        top_p=st.none() | st.floats(0, 1, exclude_min=True),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop=st.none() | st.text(min_size=1, max_size=256) | st.lists(st.text(min_size=1), max_size=16),
        repeat_penalty=st.none() | st.floats(0.01, 100),
    )
)
def test_every_option_the_messages_allow_is_one_the_sampler_takes(options: Options) -> None:
    params = sampling_params(options, 2048)

    assert params.temperature == (0.8 if options.temperature is None else options.temperature)
    assert params.top_k == (40 if options.top_k is None else options.top_k)
    assert params.max_tokens == (options.num_predict if options.num_predict and options.num_predict > 0 else 2**31 - 1)
