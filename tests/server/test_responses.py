"""`/v1/responses` through the official client, whole and streamed."""

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from live_server import NAME

from aicc.runtime.generator import Model

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_output_tokens": 24}
QUESTION = "What is the capital of France?"


def test_a_response_is_what_the_model_says_to_its_template(client: openai.OpenAI, model: Model) -> None:
    ids = model.chat_ids([{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}])
    expected = model.generate(ids, max_tokens=24)

    answer = client.responses.create(instructions="Be brief.", input=QUESTION, **GREEDY)

    assert answer.output_text == expected.text
    assert (answer.object, answer.model, answer.error) == ("response", NAME, None)
    assert answer.status == ("completed" if expected.finish_reason == "stop" else "incomplete")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(ids), len(expected.token_ids))


def test_what_is_cut_off_is_incomplete_and_says_why(client: openai.OpenAI) -> None:
    answer = client.responses.create(input=QUESTION, **GREEDY | {"max_output_tokens": 2})

    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"


def test_a_stream_has_the_events_of_the_api_in_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(input=QUESTION, **GREEDY)

    events = list(client.responses.create(input=QUESTION, stream=True, **GREEDY))

    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.response.output_text == whole.output_text
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_the_clients_own_reader_of_streams_puts_the_response_together(client: openai.OpenAI) -> None:
    # The schema ends the answer within its 400 bytes, whatever the model would say on this machine.
    with client.responses.stream(
        input="Name an animal.", text_format=Animal, **GREEDY | {"max_output_tokens": 400}
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert events[-1].type == "response.completed"
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert final.output_text == "".join(texts)
    assert final.output_parsed == Animal.model_validate_json(final.output_text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_result_read(client: openai.OpenAI, stream: bool) -> None:
    question: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked: Any = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}} | GREEDY
    asked["max_output_tokens"] = 99
    if stream:
        events = list(client.responses.create(input=question, stream=True, **asked))
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        output = events[-1].response.output
        assert "".join(deltas) == done[0].arguments == output[0].arguments
    else:
        output = client.responses.create(input=question, **asked).output

    [call] = output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow."}
    answer = client.responses.create(input=[*question, call.to_dict(), result], tools=[WEATHER], **GREEDY)
    assert answer.output


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    legs: int = pydantic.Field(ge=0, le=8)


def test_a_schema_is_followed_and_parsed(client: openai.OpenAI) -> None:
    answer = client.responses.parse(input="Name an animal.", text_format=Animal, model=NAME, temperature=0)

    assert isinstance(answer.output_parsed, Animal)


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(input=QUESTION, **GREEDY | {"max_output_tokens": 64})
    conversation: list[Any] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *(item.to_dict() for item in first.output),
        {"role": "user", "content": "Are you sure?"},
    ]

    second = client.responses.create(input=conversation, store=False, truncation="disabled", **GREEDY)

    assert second.output_text


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "invalid_value"),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "reasoning", "id": "1"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": "Hi", "weight": 1}]}, "input[0].weight", "unknown_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "1"}]},
            "input[0].arguments",
            "invalid_value",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"propertyNames": {"pattern": "a"}}}}},
            "text.format.schema",
            "invalid_value",
        ),
    ],
)
def test_what_is_not_implemented_or_wrong_is_a_400_naming_it(
    url: str, change: dict[str, Any], param: str, code: str
) -> None:
    answer = httpx.post(f"{url}/v1/responses", json={"model": NAME, "input": "Hi", "max_output_tokens": 1} | change)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
