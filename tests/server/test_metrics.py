"""`/metrics` counts what really happened."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import DEADLINE, NAME, health, listening, wait_idle, wait_until
from prometheus_client.parser import text_string_to_metric_families

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.generator import Model
from aicc.runtime.machine import processor
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Limits, create_app
from aicc.runtime.speculation import SpeculationOptions
from aicc.runtime.target import find_target

ASKED: dict[str, Any] = {"model": NAME, "prompt": "One, two,", "max_tokens": 5, "ignore_eos": True}
ENDLESS: dict[str, Any] = ASKED | {"max_tokens": 8000, "stream": True}


def samples(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every figure by name and labels."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def figure(url: str, name: str, **labels: str) -> float:
    return samples(url).get((name, frozenset({"model": NAME, **labels}.items())), 0.0)


@pytest.fixture(scope="module")
def url(executable: DecoderExecutable, demo_artifact: Artifact) -> Iterator[str]:
    """A server of its own, so that nobody else is counted; it takes two sequences."""
    model = Model(executable, demo_artifact, target="openvino:cpu")
    with listening(create_app({NAME: model}, Limits(sequences=2))) as url:
        yield url


def counted(url: str, outcome: str) -> float:
    return figure(url, "aicc_requests_total", endpoint="/v1/completions", outcome=outcome)


def test_tokens_times_and_steps_of_a_generation(url: str) -> None:
    names = [
        "aicc_prompt_tokens_total",
        "aicc_completion_tokens_total",
        "aicc_time_to_first_token_seconds_count",
        "aicc_queue_seconds_count",
        "aicc_inter_token_seconds_count",
        "aicc_request_seconds_count",
    ]
    before = {name: figure(url, name) for name in [*names, "aicc_batch_sequences_count", "aicc_batch_sequences_sum"]}
    usage = httpx.post(f"{url}/v1/completions", json=ASKED | {"n": 2}, timeout=DEADLINE).json()["usage"]
    wait_until(lambda: figure(url, names[-1]) > before[names[-1]], "recording")
    now = {name: figure(url, name) - before[name] for name in before}

    # Figures are of sequences, of which the request had two; a prompt is read for each.
    assert [now[name] for name in names] == [2 * usage["prompt_tokens"], usage["completion_tokens"], 2, 2, 8, 1]
    assert now["aicc_batch_sequences_count"] >= 5
    assert now["aicc_batch_sequences_sum"] == usage["completion_tokens"]
    assert figure(url, "aicc_prefix_hit_tokens_total") + figure(url, "aicc_prefix_miss_tokens_total") == figure(
        url, "aicc_prompt_tokens_total"
    )
    assert figure(url, "aicc_kv_used_ratio_count") == figure(url, "aicc_batch_sequences_count")
    assert 0 < figure(url, "aicc_kv_used_ratio_sum") < figure(url, "aicc_kv_used_ratio_count")


def test_requests_are_counted_by_how_they_went(url: str) -> None:
    def after(outcome: str, body: dict[str, Any], leave: bool = False) -> None:
        before = counted(url, outcome)
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=DEADLINE) as answer:
            lines = answer.iter_lines()
            next(lines) if leave else answer.read()
        wait_until(lambda: counted(url, outcome) == before + 1, outcome)

    after("ok", ASKED)
    after("ok", ASKED | {"stream": True})
    after("cancelled", ENDLESS, leave=True)
    wait_idle(url)
    with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS | {"n": 2}, timeout=DEADLINE) as answer:
        lines = answer.iter_lines()
        next(lines)
        before = rejected(url)
        assert httpx.post(f"{url}/v1/completions", json=ASKED).status_code == 429
        wait_until(lambda: rejected(url) == before + 1, "recording")
    wait_idle(url)


def rejected(url: str) -> float:
    return counted(url, "rejected")


@pytest.mark.skipif(not find_target("cpu").runs_on(processor()), reason="the cpu family does not run here")
@pytest.mark.parametrize("by_a_model", [False, True])
def test_guesses_are_counted(cpu_artifact: Artifact, by_a_model: bool) -> None:
    draft = cpu_artifact.path if by_a_model else None
    model = load(cpu_artifact.path, kv_tokens=1024, draft=draft, speculation=SpeculationOptions())
    asked = ASKED | {"prompt": "one two three " * 8, "max_tokens": 24, "temperature": 0}
    with model, listening(create_app({NAME: model})) as url:
        answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=DEADLINE)
        wait_idle(url)
        drafted, accepted = (figure(url, f"aicc_{kind}_tokens_total") for kind in ("drafted", "accepted"))

        assert 0 < accepted <= drafted
        assert figure(url, "aicc_completion_tokens_total") == answer.json()["usage"]["completion_tokens"] == 24


def test_names_that_callers_make_up_are_no_labels(url: str) -> None:
    for i in range(3):
        httpx.post(f"{url}/v1/completions", json=ASKED | {"model": f"made-up-{i}"})
        httpx.get(f"{url}/made-up-{i}")
    wait_until(lambda: any(dict(labels).get("outcome") == "invalid" for _, labels in samples(url)), "recording")

    assert not [labels for _, labels in samples(url) if "made-up" in str(labels)]


def test_it_says_which_device_runs_which_model(url: str) -> None:
    [info] = [dict(labels) for name, labels in samples(url) if name == "aicc_model_info"]

    assert info["model"] == NAME
    assert (info["target"], info["family"], info["isa"]) == ("openvino:cpu", "openvino", "cpu")
    assert info["device"] == health(url)["device"]
    assert figure(url, "aicc_model_ready") == 1


def test_pages_are_those_of_the_engine(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=DEADLINE) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert figure(url, "aicc_kv_pages_free") < figure(url, "aicc_kv_pages")
        assert figure(url, "aicc_open") == 1
    wait_idle(url)

    assert figure(url, "aicc_kv_pages_free") == figure(url, "aicc_kv_pages")
