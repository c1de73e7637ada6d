"""Whatever is wrong with a request, the answer is one error in the API's shape that names it."""

import json
from typing import Any

import httpx
import openai
import pytest
from live_server import NAME

from aicc.runtime.generator import Model

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
COMPLETION: dict[str, Any] = {"model": NAME, "prompt": "Hi", "max_tokens": 1}


def post(http: httpx.Client, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(path, content=content, headers={"content-type": "application/json"} | headers)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, its shape checked."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
ADDING = {"type": "function", "function": ADD}
UNENFORCEABLE = {"type": "function", "function": {"name": "f", "parameters": {"propertyNames": {"pattern": "^a"}}}}

MISTAKES: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown field", {"max_token": 5}, "max_token", "unknown_parameter"),
    ("a tool without a function", {"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ("another kind of tool", {"tools": [{"type": "custom", "function": ADD}]}, "tools[0].type", "invalid_value"),
    (
        "a function of no name",
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    ("two functions of a name", {"tools": [ADDING, ADDING]}, "tools", "invalid_value"),
    ("too many tools", {"tools": [ADDING] * 129}, "tools", "invalid_value"),
    ("a choice without tools", {"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ("parallel calls without tools", {"parallel_tool_calls": True}, "parallel_tool_calls", "invalid_value"),
    (
        "a choice that is not there",
        {"tools": [ADDING], "tool_choice": {"type": "function", "function": {"name": "subtract"}}},
        "tool_choice.function.name",
        "invalid_value",
    ),
    (
        "a function's schema that cannot be enforced",
        {"tools": [ADDING, UNENFORCEABLE], "tool_choice": "required"},
        "tools[1].function.parameters",
        "invalid_value",
    ),
    ("metadata", {"metadata": {"a": "b"}}, "metadata", "unsupported_parameter"),
    ("store", {"store": True}, "store", "unsupported_parameter"),
    ("reasoning", {"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    ("another format", {"response_format": {"type": "grammar"}}, "response_format.type", "invalid_value"),
    (
        "no schema",
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        "a schema that cannot be enforced",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"uniqueItems": True}}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    ("no model", {"model": None}, "model", "invalid_value"),
    ("no messages", {"messages": []}, "messages", "invalid_value"),
    ("messages as text", {"messages": "Hi"}, "messages", "invalid_value"),
    ("a message as text", {"messages": ["Hi"]}, "messages[0]", "invalid_value"),
    ("no role", {"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    ("another role", {"messages": [{"role": "function", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
    (
        "a result of no call",
        {"messages": [{"role": "tool", "content": "Hi"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    (
        "an assistant who says nothing",
        {"messages": [{"role": "assistant"}]},
        "messages[0].content",
        "missing_required_parameter",
    ),
    ("no content", {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    (
        "an image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        "a field of a message",
        {"messages": [{"role": "user", "content": "Hi", "weight": 1}]},
        "messages[0].weight",
        "unknown_parameter",
    ),
    (
        "arguments that are no object",
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    ("temperature above 2", {"temperature": 2.1}, "temperature", "invalid_value"),
    ("a repetition penalty no logit survives", {"repetition_penalty": 1e-300}, "repetition_penalty", "invalid_value"),
    ("temperature as text", {"temperature": "1"}, "temperature", "invalid_value"),
    ("top_p of 0", {"top_p": 0}, "top_p", "invalid_value"),
    ("negative top_k", {"top_k": -1}, "top_k", "invalid_value"),
    ("min_p above 1", {"min_p": 1.5}, "min_p", "invalid_value"),
    ("penalty above 2", {"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ("no tokens", {"max_tokens": 0}, "max_tokens", "invalid_value"),
    ("half a token", {"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ("two limits", {"max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ("a boolean for a number", {"n": True}, "n", "invalid_value"),
    ("n of 0", {"n": 0}, "n", "invalid_value"),
    ("huge n", {"n": 10**6}, "n", "invalid_value"),
    ("n beyond any integer", {"n": 10**400}, "n", "invalid_value"),
    ("five stops", {"stop": list("abcde")}, "stop", "invalid_value"),
    ("an empty stop", {"stop": ""}, "stop", "invalid_value"),
    ("a bias of no token", {"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ("a bias beyond the vocabulary", {"logit_bias": {"10000000": 1}}, "logit_bias", "invalid_value"),
    ("a bias above 100", {"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ("top_logprobs alone", {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ("21 top_logprobs", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ("stream options alone", {"stream_options": {}}, "stream_options", "invalid_value"),
    ("an unknown stream option", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    ("stream as text", {"stream": "yes"}, "stream", "invalid_value"),
]


@pytest.mark.parametrize(("change", "param", "code"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_in_a_chat_is_a_400_naming_the_field(
    http: httpx.Client, change: dict[str, Any], param: str, code: str
) -> None:
    answer = post(http, CHAT | change)

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


PROMPTS: list[tuple[str, Any, str]] = [
    ("empty text", "", "prompt"),
    ("empty list", [], "prompt"),
    ("an empty list of ids", [[]], "prompt"),
    ("mixed", ["a", 1], "prompt"),
    ("a fraction", [1.5], "prompt[0]"),
    ("a negative id", [-1], "prompt[0]"),
    ("an id beyond the vocabulary", [2**31 - 1], "prompt"),
    ("an id beyond any integer", [10**30], "prompt[0]"),
    ("65 prompts", ["a"] * 65, "prompt"),
    ("lists too deep", [[[1]]], "prompt[0][0]"),
    ("an object", {"text": "a"}, "prompt"),
    ("nothing", None, "prompt"),
]


@pytest.mark.parametrize(("prompt", "param"), [p[1:] for p in PROMPTS], ids=[p[0] for p in PROMPTS])
def test_a_prompt_that_is_none_is_a_400(http: httpx.Client, prompt: Any, param: str) -> None:
    answer = post(http, COMPLETION | {"prompt": prompt}, "/v1/completions")

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize("change", [{"best_of": 2}, {"suffix": "end"}])
def test_what_completions_do_not_implement_is_a_400(http: httpx.Client, change: dict[str, Any]) -> None:
    answer = post(http, COMPLETION | change, "/v1/completions")

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == (next(iter(change)), "unsupported_parameter")


def test_no_tokens_and_no_echo_is_nothing_to_ask_for(http: httpx.Client) -> None:
    answer = post(http, COMPLETION | {"max_tokens": 0}, "/v1/completions")

    assert (answer.status_code, error_of(answer)["param"]) == (400, "max_tokens")


def test_more_choices_than_the_server_holds_are_a_400(http: httpx.Client) -> None:
    answer = post(http, COMPLETION | {"prompt": ["a"] * 64, "n": 8}, "/v1/completions")

    assert answer.status_code == 400
    assert "512" in error_of(answer)["message"]


def test_fields_that_are_null_are_fields_left_out(http: httpx.Client) -> None:
    nulls = dict.fromkeys(["tools", "stop", "n", "stream", "logit_bias", "metadata", "temperature"])

    assert post(http, CHAT | nulls).status_code == 200


def test_another_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as chat:
        client.chat.completions.create(**CHAT | {"model": "gpt-4"})
    with pytest.raises(openai.NotFoundError) as shown:
        client.models.retrieve("gpt-4")

    for caught in (chat, shown):
        assert caught.value.code == "model_not_found"
        assert "gpt-4" in caught.value.message
        assert NAME in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_not_cut(client: openai.OpenAI, model: Model, stream: bool) -> None:
    ids = [1] * (model.context_length + 1)

    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**COMPLETION | {"prompt": ids}, stream=stream)

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    assert str(model.context_length) in caught.value.message


def test_a_conversation_that_does_not_fit_is_refused(client: openai.OpenAI, model: Model) -> None:
    messages: list[Any] = [{"role": "user", "content": "word " * model.context_length}]

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=messages)

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": "' + NAME.encode() + b'"} {}',
        b"\xff\xfe{}",
        b'{"model": "\xc3\x28"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"messages":' * 50_000,
        b'{"model": "x", "logit_bias": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"temperature": ' + b"9" * 100_000 + b"}",
        b'{"' + b"a" * 100_000 + b'": 1}',
    ],
    ids=lambda body: body[:12].decode(errors="replace"),
)
def test_a_body_that_is_no_request_is_a_400(http: httpx.Client, body: bytes) -> None:
    answer = post(http, body)

    assert answer.status_code == 400
    message = error_of(answer)["message"]
    assert len(message) < 500
    assert "jSON" not in message


def test_a_body_that_is_too_large_is_a_413(http: httpx.Client) -> None:
    answer = post(http, CHAT | {"user": "x" * (2 << 20)})

    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"


def test_a_body_that_is_too_large_in_chunks_is_a_413(http: httpx.Client) -> None:
    chunks = (b" " * 65536 for _ in range(80))
    answer = http.post("/v1/completions", content=chunks, headers={"content-type": "application/json"})

    assert answer.status_code == 413


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_it_is_json_is_a_415(http: httpx.Client, media_type: str) -> None:
    answer = post(http, CHAT, **{"content-type": media_type})

    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("coding", ["gzip", "deflate, gzip", "", "x" * 1000])
def test_a_body_that_is_compressed_is_a_415(http: httpx.Client, coding: str) -> None:
    answer = post(http, CHAT, **{"content-encoding": coding})

    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_encoding"
    assert post(http, CHAT, **{"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/health/ready", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_naming_the_right_one(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)

    assert answer.status_code == 405
    assert allowed in answer.headers["allow"]
    assert error_of(answer)["code"] == "method_not_allowed"


def test_a_method_of_any_length_is_told_in_few_words(http: httpx.Client) -> None:
    answer = http.request("A" * 50_000, "/v1/models")

    assert answer.status_code == 405
    assert len(answer.content) < 500


@pytest.mark.parametrize(
    "path", ["/page", "/v1", "/v1/audio/speech", "/v1/chat/completions/x", "/v1/%00", "/../etc/passwd"]
)
def test_an_unknown_path_is_a_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)

    assert answer.status_code == 404
    assert error_of(answer)["code"] == "unknown_url"


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:8000", "127.0.0.1.attacker.example", "[", ""])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/nothing")])
def test_a_page_that_has_its_name_resolve_to_this_machine_gets_nothing(
    http: httpx.Client, host: str, method: str, path: str
) -> None:
    answer = http.request(method, path, headers={"host": host})

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "unknown_host"
    assert f"The Host header is '{host}'" in error["message"]
    assert "127.0.0.1" in error["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_this_machines_own_names_are_answered(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200
