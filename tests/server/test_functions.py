"""Functions and schemas, through the official client: what is enforced is what comes."""

import json
from typing import Any

import openai
import pydantic
import pytest
from live_server import NAME, health

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time", "description": "The time now."}}
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
ASKED: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 200}


def check_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert set(given) == {"city", "unit"}
    assert given["unit"] in ("celsius", "fahrenheit")


def test_a_named_function_is_called_once_with_arguments_by_its_schema(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}

    answer = client.chat.completions.create(tools=[WEATHER, TIME], tool_choice=choice, **ASKED).choices[0]

    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls or []
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id.startswith("call_")
    check_weather(call.function.arguments)


@pytest.mark.parametrize("parallel", [True, False])
def test_required_is_a_call_of_any_function(client: openai.OpenAI, parallel: bool) -> None:
    answer = client.chat.completions.create(
        tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=parallel, n=2, **ASKED
    )

    for choice in answer.choices:
        calls = choice.message.tool_calls or []
        assert len(calls) >= 1 if parallel else len(calls) == 1
        assert len({call.id for call in calls}) == len(calls)
        for call in calls[: None if choice.finish_reason == "tool_calls" else -1]:
            if call.function.name == "get_weather":
                check_weather(call.function.arguments)
            else:
                assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})


def test_a_streamed_call_comes_in_pieces_the_client_puts_together(client: openai.OpenAI) -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False} | ASKED
    whole = client.chat.completions.create(**options).choices[0].message.tool_calls[0]

    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]

    assert kinds.count("tool_calls.function.arguments.delta") > 3
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert final.finish_reason == "tool_calls"
    [call] = final.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == (whole.function.name, whole.function.arguments)


@pytest.mark.parametrize("strict", [False, True])
def test_whether_to_call_is_the_models_choice_where_it_may(client: openai.OpenAI, strict: bool) -> None:
    tool = {"type": "function", "function": WEATHER["function"] | {"strict": strict}}
    greeting: Any = [{"role": "user", "content": "Hello! How are you?"}]

    asked = client.chat.completions.create(tools=[tool], tool_choice="auto", **ASKED).choices[0]
    greeted = client.chat.completions.create(tools=[tool], **ASKED | {"messages": greeting}).choices[0]

    [call] = asked.message.tool_calls or []
    assert (asked.finish_reason, asked.message.content, call.function.name) == ("tool_calls", None, "get_weather")
    check_weather(call.function.arguments)
    assert greeted.finish_reason == "stop"
    assert greeted.message.content
    assert greeted.message.tool_calls is None


def test_none_is_as_if_there_were_no_functions(client: openai.OpenAI) -> None:
    with_tools = client.chat.completions.create(tools=[WEATHER], tool_choice="none", **ASKED)
    without = client.chat.completions.create(**ASKED)

    assert with_tools.choices[0].message.content == without.choices[0].message.content
    assert with_tools.choices[0].message.tool_calls is None


def test_what_a_function_returned_is_read(client: openai.OpenAI) -> None:
    called = client.chat.completions.create(tools=[WEATHER], tool_choice="required", **ASKED).choices[0].message

    def told(result: str) -> str:
        results = [{"role": "tool", "tool_call_id": call.id, "content": result} for call in called.tool_calls or []]
        conversation: Any = [*MESSAGES, called, *results]
        answer = client.chat.completions.create(tools=[WEATHER], **ASKED | {"messages": conversation})
        return answer.choices[0].message.content or ""

    assert "31" in told("Sunny, 31 degrees.")
    assert "31" not in told("Snow, 3 degrees.")


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    legs: int = pydantic.Field(ge=0, le=8)
    wild: bool


def test_a_schema_is_followed_and_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(response_format=Animal, **ASKED | {"temperature": 1, "seed": 3})

    animal = answer.choices[0].message.parsed
    assert isinstance(animal, Animal)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_json_mode_is_one_object(client: openai.OpenAI, stream: bool) -> None:
    format: Any = {"type": "json_object"}
    asked = ASKED | {"messages": [{"role": "user", "content": 'Give me a JSON object with one key, "a".'}]}

    answer: Any = client.chat.completions.create(response_format=format, stream=stream, **asked)

    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text, finish = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text.lstrip().startswith("{")
    if finish == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_and_functions_together_are_one_or_the_other(client: openai.OpenAI) -> None:
    message = (
        client.chat.completions.create(
            tools=[WEATHER],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "animal", "schema": Animal.model_json_schema()},
            },
            **ASKED,
        )
        .choices[0]
        .message
    )

    if message.tool_calls:
        assert message.tool_calls[0].function.name == "get_weather"
    else:
        Animal.model_validate_json(message.content or "")


def test_a_refused_schema_names_its_keyword_and_leaves_no_room_taken(client: openai.OpenAI, url: str) -> None:
    schema = {"type": "object", "propertyNames": {"pattern": "^a"}}

    with pytest.raises(openai.BadRequestError, match="propertyNames") as caught:
        client.chat.completions.create(
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, **ASKED
        )

    assert caught.value.param == "response_format.json_schema.schema"
    assert health(url)["sequences"] == 0


def test_a_schema_that_is_too_large_is_refused(client: openai.OpenAI) -> None:
    schema = {"enum": [f"value {i}" for i in range(20_000)]}

    with pytest.raises(openai.BadRequestError, match="bytes"):
        client.chat.completions.create(
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, **ASKED
        )
