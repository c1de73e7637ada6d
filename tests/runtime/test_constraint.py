"""A constrained generation is what its grammar says, whatever the model would have said."""

import json
import re
import threading

import pytest

from aicc.runtime import Model, load
from aicc.runtime.constraint import MAX_GRAMMAR_BYTES
from aicc.runtime.errors import UsageError

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "celsius": {"type": "integer", "minimum": -60, "maximum": 60},
        "sky": {"enum": ["clear", "cloudy"]},
    },
    "required": ["city", "celsius", "sky"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_model_fills_a_schema(model, temperature, seed):
    constraint = model.constraint("json_schema", WEATHER)
    generation = model.generate("The weather:", constraint, max_tokens=200, temperature=temperature, seed=seed)
    assert generation.finish_reason == "stop"
    answer = json.loads(generation.text)
    assert answer.keys() == {"city", "celsius", "sky"}
    assert len(answer["city"]) <= 12
    assert -60 <= answer["celsius"] <= 60
    assert answer["sky"] in ("clear", "cloudy")


@pytest.mark.parametrize("asked", [{}, {"x-guidance": {"whitespace_flexible": True, "whitespace_pattern": "[ ]*"}}])
def test_json_is_spaced_as_python_writes_it_whatever_a_schema_asks(model, asked):
    value = {"a": [1, {"b": None}, []], "c": {"d": "e"}}
    constants = {name: {"const": inner} for name, inner in value.items()}
    schema = {"type": "object", "properties": constants, "required": [*value], "additionalProperties": False, **asked}
    for seed in range(3):
        generation = model.generate("Say:", model.constraint("json_schema", schema), temperature=1.0, seed=seed)
        assert generation.text == json.dumps(value)


def test_the_real_model_answers_with_a_json_object(demo_artifact):
    with load(demo_artifact.path) as model:
        assert isinstance(model, Model)
        prompt = 'A, B and C as JSON:\n{"a": 1}\n{"b": 2}\n'
        generation = model.generate(prompt, model.constraint("json_object"), max_tokens=40)
    assert generation.finish_reason == "stop"
    assert isinstance(json.loads(generation.text), dict)


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        ("regex", "[a-c]{3}-[0-9]{2}", "[a-c]{3}-[0-9]{2}"),
        ("regex", "(yes|no)", "yes|no"),
        ("lark", 'start: "<" WORD ("," WORD)? ">"\nWORD: /[x-z]{2,4}/', "<[x-z]{2,4}(,[x-z]{2,4})?>"),
    ],
)
def test_expressions_and_grammars_end_where_nothing_may_follow(model, kind, source, pattern):
    for seed in range(4):
        constraint = model.constraint(kind, source)
        generation = model.generate("Say:", constraint, max_tokens=50, temperature=1.0, seed=seed, ignore_eos=True)
        assert re.fullmatch(pattern, generation.text), generation.text
        assert generation.finish_reason == "stop"


def test_the_end_of_sequence_token_is_allowed_only_where_the_grammar_is_satisfied(model):
    eos = model.manifest.llm.eos_token_ids[0]
    generation = model.generate("Say:", model.constraint("regex", "[a-z]{4,}"), max_tokens=30, logit_bias={eos: 100})
    assert re.fullmatch("[a-z]{4,}", generation.text)
    assert generation.token_ids[-1] == eos


def test_log_probabilities_are_of_the_model_and_not_of_the_grammar(model):
    (piece, *_) = model.stream("Say:", model.constraint("regex", "[0-9]{9}"), max_tokens=1, logprobs=3)
    assert piece.logprobs.token < piece.logprobs.top[-1][1]


def test_requests_with_and_without_constraints_share_steps(model):
    texts = [model.generate(f"{i}", max_tokens=12, ignore_eos=True).text for i in range(3)]
    together: dict[int, str] = {}

    def generate(i: int) -> None:
        constraint = model.constraint("json_schema", WEATHER) if i >= 3 else None
        tokens = 12 if i < 3 else 200
        together[i] = model.generate(f"{i}", constraint, max_tokens=tokens, ignore_eos=True).text

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(3)] == texts
    assert all(json.loads(together[i])["sky"] for i in range(3, 6))


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "([", "unclosed character class"),
        ("lark", "start: nothing", 'unknown name: "nothing"'),
        ("lark", 'start: %json {"type": "integer", "multipleOf": 99991}', "multipleOf"),
        ("json_schema", '{"type":', "Expecting value"),
        ("json_schema", "[]", "Expecting object schema"),
        ("json_schema", {"type": "nonsense"}, "Invalid type: nonsense"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ("json_schema", {"$ref": "http://localhost/schema"}, "does not fetch"),
        ("json_schema", {"type": "integer", "multipleOf": 99991}, "multipleOf"),
        ("json_schema", {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf"),
        ("json_schema", '{"multipleOf": 1' + "0" * 400 + "}", "cannot be enforced"),
        ("json_schema", '{"a":' * 3000 + "1" + "}" * 3000, "recursion"),
        ("json_schema", {"enum": ["\ud800"]}, "cannot be enforced"),
        ("regex", "a" * (MAX_GRAMMAR_BYTES + 1), f"may have {MAX_GRAMMAR_BYTES}"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(model, kind, source, reason):
    with pytest.raises(UsageError, match=f"{kind}.*{re.escape(reason)}"):
        model.constraint(kind, source)


def test_a_grammar_that_grows_too_costly_ends_its_request_alone(model):
    costly = model.constraint("regex", "(.*a.{500}b)")
    with pytest.raises(UsageError, match=r"regex cannot be enforced: .*too many states"):
        model.generate("Say:", costly, max_tokens=100, temperature=1.0, seed=0, ignore_eos=True)
    assert model.engine.free_pages == model.engine.page_count
    assert len(model.generate("Say:", max_tokens=3, ignore_eos=True).token_ids) == 3
