"""Calls of functions are read from what a model says as it says it, and grammars allow nothing else."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicc.runtime.artifact import TOKENIZER_PATH, Artifact
from aicc.runtime.constraint import Grammars
from aicc.runtime.tokenizer import Tokenizer
from aicc.runtime.tools.formats import (
    FALLBACK,
    HERMES,
    LLAMA3,
    MISTRAL,
    Function,
    ToolFormat,
    template_input,
    tool_format,
)
from aicc.runtime.tools.grammar import calls_grammar, optional_calls_grammar
from aicc.runtime.tools.parser import Arguments, Call, Said, Text, ToolCallParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
FUNCTIONS = [Function("weather", "The weather.", CITY | {"additionalProperties": False}), Function("time")]
FORMS = [HERMES, LLAMA3, MISTRAL]
Calls = list[tuple[str, dict[str, Any]]]


def written(form: ToolFormat, calls: Calls) -> str:
    """Calls as a model of this form writes them."""
    bodies = [json.dumps({"name": name, form.arguments: arguments}) for name, arguments in calls]
    marker = form.marker if form.each else ""
    texts = [marker + form.opening + body + form.closing for body in bodies]
    return ("" if form.each else form.marker) + form.start + (form.separator or "").join(texts) + form.end


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, Calls]:
    """What is said besides calls, and the calls."""
    parser = ToolCallParser(form, [function.name for function in FUNCTIONS])
    said: list[Said] = [each for piece in pieces for each in parser.push(piece)] + parser.finish()
    calls = [call for call in said if isinstance(call, Call)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    arguments = [
        "".join(each.text for each in said if isinstance(each, Arguments) and each.index == call.index)
        for call in calls
    ]
    text = "".join(each.text for each in said if isinstance(each, Text))
    return text, [(call.name, json.loads(a)) for call, a in zip(calls, arguments, strict=True)]


def cut(text: str, at: set[int]) -> list[str]:
    edges = [0, *sorted(i for i in at if 0 < i < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


values = st.recursive(
    st.integers() | st.text() | st.booleans(), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
some_calls = st.lists(
    st.tuples(st.sampled_from(["weather", "time"]), st.dictionaries(st.text(), values, max_size=3)),
    min_size=1,
    max_size=3,
)
cuts = st.sets(st.integers(1, 300))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(calls=some_calls, at=cuts)
def test_calls_are_read_however_the_text_is_cut(form: ToolFormat, calls: Calls, at: set[int]) -> None:
    calls = calls if form.separator else calls[:1]

    assert read(form, cut(written(form, calls), at)) == ("", calls)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(text=st.text() | st.text('<tool_cal>{}"name: \n[TOOL_CALLS],'), at=cuts)
def test_text_without_calls_stays_as_it_is(form: ToolFormat, text: str, at: set[int]) -> None:
    assert read(form, cut(text, at)) == (text, [])


@given(at=cuts)
def test_text_before_calls_is_text(at: set[int]) -> None:
    calls: Calls = [("weather", {"city": "Paris"}), ("time", {})]
    text = "Let me <look>.\n" + written(HERMES, calls)

    assert read(HERMES, cut(text, at)) == ("Let me <look>.\n", calls)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "<tool_call>\nweather(Paris)\n</tool_call>",
        '<tool_call>{"name": "weather"',
        "<tool_call>" + "x" * 5000,
    ],
)
@given(at=cuts)
def test_what_only_looks_like_a_call_is_text(text: str, at: set[int]) -> None:
    assert read(HERMES, cut(text, at)) == (text, [])


def test_arguments_may_come_before_the_name() -> None:
    text = '<tool_call>\n{"arguments": {"city": "Rome"}, "name": "weather"}\n</tool_call>'

    assert read(HERMES, [text]) == ("", [("weather", {"city": "Rome"})])


def test_arguments_are_told_before_they_are_complete() -> None:
    parser = ToolCallParser(HERMES, ["weather"])

    said = parser.push('<tool_call>\n{"name": "weather", "arguments": {"city": "Pa')

    assert [type(each) for each in said] == [Call, Arguments]
    assert said[1] == Arguments(0, '{"city": "Pa')


def test_a_special_token_begins_calls_and_its_name_in_a_text_does_not() -> None:
    parser = ToolCallParser(MISTRAL, ["weather"], marker_token=5)

    assert parser.push("[TOOL_CALLS]", (7, 8)) == [Text("[TOOL_CALLS]")]
    assert parser.push("", (5,)) == []
    assert [type(each) for each in parser.push('[{"name": "weather", "arguments": {}}]', (9,))] == [Call, Arguments]


@pytest.fixture(scope="module")
def grammars(demo_artifact: Artifact) -> Grammars:
    return Grammars(demo_artifact.file(TOKENIZER_PATH), 49152, [2])


@pytest.fixture(scope="module")
def tokenizer(demo_artifact: Artifact) -> Tokenizer:
    return Tokenizer(demo_artifact.file(TOKENIZER_PATH))


def follows(grammars: Grammars, tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether a grammar allows a text and its end."""
    constraint = grammars.compile("lark", grammar)
    for token in [*tokenizer.encode(text, add_special_tokens=False), 2]:
        if constraint.finished:
            return token == 2
        mask = constraint.mask()
        if mask is not None and not mask[token]:
            return False
        constraint.advance(token)
    return True


PARIS: Calls = [("weather", {"city": "Paris", "days": 3})]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_grammar_of_calls_allows_calls_alone(form: ToolFormat, grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = calls_grammar(form, FUNCTIONS)
    one = written(form, PARIS)

    assert follows(grammars, tokenizer, grammar, one)
    assert follows(grammars, tokenizer, grammar, written(form, [("time", {})]))
    assert follows(grammars, tokenizer, grammar, written(form, PARIS * 2)) == (form.separator is not None)
    assert not follows(grammars, tokenizer, calls_grammar(form, FUNCTIONS, most=1), one + one)
    assert not follows(grammars, tokenizer, grammar, "Hello")
    assert not follows(grammars, tokenizer, grammar, written(form, [("weather", {"town": "Paris"})]))
    assert not follows(grammars, tokenizer, grammar, written(form, [("unknown", {})]))
    assert not follows(grammars, tokenizer, grammar, one[:-1] if form.closing else one[:-2])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_grammar_of_optional_calls_allows_text_too(
    form: ToolFormat, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    strict = [Function("weather", None, FUNCTIONS[0].parameters, strict=True), FUNCTIONS[1]]
    grammar = optional_calls_grammar(form, strict, most=1)

    assert follows(grammars, tokenizer, grammar, "Hello there.")
    assert follows(grammars, tokenizer, grammar, "")
    assert follows(grammars, tokenizer, grammar, written(form, PARIS))
    assert follows(grammars, tokenizer, grammar, written(form, [("time", {"zone": 3})]))  # not strict
    assert not follows(grammars, tokenizer, grammar, written(form, [("weather", {"town": "Paris"})]))
    if form.marker:
        assert follows(grammars, tokenizer, grammar, "Sure.\n" + written(form, PARIS))
        assert not follows(grammars, tokenizer, grammar, written(form, PARIS) + "\n" + written(form, PARIS))


def test_a_grammar_of_optional_calls_may_demand_a_schema_of_what_is_no_call(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammar = optional_calls_grammar(HERMES, FUNCTIONS, answer={"type": "object", "required": ["a"]})

    assert follows(grammars, tokenizer, grammar, '{"a": 1}')
    assert follows(grammars, tokenizer, grammar, written(HERMES, PARIS))
    assert not follows(grammars, tokenizer, grammar, "Hello")


def test_arguments_a_schema_does_not_name_are_not_made_up(grammars: Grammars, tokenizer: Tokenizer) -> None:
    silent, open_ = (
        {"properties": {"city": {"type": "string"}}} | more for more in ({}, {"additionalProperties": True})
    )
    made_up = written(HERMES, [("weather", {"town": "Paris"})])

    assert not follows(grammars, tokenizer, calls_grammar(HERMES, [Function("weather", None, silent)]), made_up)
    assert follows(grammars, tokenizer, calls_grammar(HERMES, [Function("weather", None, open_)]), made_up)


TEMPLATES = {
    "hermes": "{% if tools %}<tool_call>{{ tool_call.arguments | tojson }}</tool_call>{% endif %}",
    "mistral": '{% if tools %}{{ "[TOOL_CALLS] [" }}{% endif %}',
    "llama3": "{% if tools %}<|start_header_id|>{{ '\"parameters\": ' }}{% endif %}",
    "fallback": "{% for message in messages %}{{ message.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_form_is_told_by_the_template(name: str) -> None:
    assert tool_format(TEMPLATES[name]).name == name


def test_a_template_that_shows_no_form_gets_one_explained() -> None:
    call = {"id": "1", "name": "weather", "arguments": {"city": "Paris"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "tool", "content": "warm", "tool_call_id": "1"},
    ]

    shown, definitions = template_input(FALLBACK, messages, FUNCTIONS)

    assert definitions is None
    assert [message["role"] for message in shown] == ["system", *["user", "assistant"] * 3, "user"]
    assert shown[0]["content"].startswith("Be brief.\n\n")
    assert json.dumps(CITY)[1:-1] in shown[0]["content"]
    assert read(HERMES, [shown[2]["content"]])[1] == []  # an example of each
    assert shown[3]["content"] == "The weather."
    assert read(HERMES, [shown[4]["content"]]) == ("", [("weather", {"city": "?"})])
    assert shown[5]["content"] == "Weather?"
    assert read(HERMES, [shown[6]["content"]]) == ("", [("weather", {"city": "Paris"})] * 2)
    assert shown[7]["content"].index("sunny") < shown[7]["content"].index("warm")


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "enum", "properties", "required", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    schema=st.dictionaries(st.sampled_from(["properties", "required", "type"]), ODD), description=st.text() | st.none()
)
def test_an_example_is_a_call_whatever_the_schema_and_description(
    schema: dict[str, Any], description: str | None
) -> None:
    function = Function("weather", description, schema)

    shown, _ = template_input(FALLBACK, [{"role": "user", "content": "Weather?"}], [function])

    assert [message["role"] for message in shown] == ["system", *["user", "assistant"] * 2, "user"]
    text, [(name, arguments)] = read(HERMES, [shown[4]["content"]])
    assert (text, name) == ("", "weather")
    known = schema.get("properties")
    assert set(arguments) <= set(known if isinstance(known, dict) else ())


def test_a_template_that_shows_a_form_gets_objects_and_ids_it_accepts() -> None:
    call = {"id": "call_0123456789abcdef", "name": "weather", "arguments": {"city": "Paris"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": call["id"]},
    ]

    shown, definitions = template_input(MISTRAL, messages, FUNCTIONS)

    assert definitions is not None
    assert [definition["function"]["name"] for definition in definitions] == ["weather", "time"]
    assert shown[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert shown[0]["tool_calls"][0]["id"] == shown[1]["tool_call_id"] == "789abcdef"
