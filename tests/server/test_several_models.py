"""Several models behind one server, each with its name and its own engine."""

import threading
from collections.abc import Iterator

import httpx
import openai
import pytest
from live_server import DEADLINE, ServerProcess, listening, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import IntegrityError, UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import create_app, serve
from aicc.runtime.server.app import Service, build_app
from aicc.runtime.server.registry import Registry, served
from aicc.runtime.session import Session


@pytest.fixture(scope="module")
def url(executable: DecoderExecutable, demo_artifact: Artifact, encoder: Session) -> Iterator[str]:
    """Two language models and an encoder."""
    models = {name: Model(executable, demo_artifact) for name in ("one", "org/two")}
    with listening(create_app({**models, "encoder": encoder})) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_every_model_is_listed_and_answers_to_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["one", "org/two", "encoder"]
    for name in ("one", "org/two"):
        assert client.models.retrieve(name).id == name
        answer = client.completions.create(model=name, prompt="One, two,", max_tokens=2)
        assert answer.model == name


def test_a_name_nobody_has_is_a_404_that_lists_the_others(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'one', 'org/two', 'encoder'"):
        client.completions.create(model="three", prompt="One")


def test_an_encoder_asked_to_generate_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="generates no text") as caught:
        client.completions.create(model="encoder", prompt="One")

    assert (caught.value.param, caught.value.code) == ("model", "model_not_supported")


def test_health_tells_of_every_model(url: str) -> None:
    now = httpx.get(f"{url}/health/ready").json()

    assert now["status"] == "ready"
    assert [model["name"] for model in now["models"]] == ["one", "org/two", "encoder"]
    assert all(model["status"] == "ready" and model["device"] for model in now["models"])
    assert [model["kv_pages"] > 0 for model in now["models"]] == [True, True, False]


def test_a_server_is_ready_when_every_model_is(model: Model, encoder: Session) -> None:
    loaded = threading.Event()

    def load() -> Session:
        assert loaded.wait(DEADLINE)
        return encoder

    quick = served("quick", model.manifest, lambda: model, 8)
    slow = served("slow", encoder.manifest, load, 8)
    try:
        with listening(build_app(Service(Registry([quick, slow]))), until="loading") as url:
            wait_until(lambda: quick.thread.state == "ready", "loading the first")
            answer = httpx.post(
                f"{url}/v1/completions", json={"model": "quick", "prompt": "One", "max_tokens": 1}, timeout=DEADLINE
            )
            assert answer.status_code == 200
            assert httpx.get(f"{url}/health/ready").status_code == 503
            loaded.set()
            wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, "loading both")
    finally:
        loaded.set()


def test_a_model_that_cannot_be_loaded_leaves_the_others_and_is_not_healthy(model: Model, encoder: Session) -> None:
    def load() -> Session:
        raise IntegrityError("weights.bin is truncated.")

    models = [served("good", model.manifest, lambda: model, 8), served("bad", encoder.manifest, load, 8)]
    with listening(build_app(Service(Registry(models))), until="failed") as url:
        wait_until(lambda: models[0].thread.state == "ready", "loading")
        answer = httpx.post(f"{url}/v1/completions", json={"model": "good", "prompt": "One", "max_tokens": 1})

        assert answer.status_code == 200
        assert httpx.get(f"{url}/health/live").status_code == 503


def test_two_models_of_one_name_are_refused(demo_artifact: Artifact) -> None:
    with pytest.raises(UsageError, match=r"2 of the models are called smollm2-135m.*NAME=ARTIFACT"):
        serve([(None, demo_artifact.path)] * 2, port=0)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m"])
def test_a_name_that_cannot_be_shown_is_refused(model: Model, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a model"):
        create_app({name: model})


def test_no_model_is_no_server() -> None:
    with pytest.raises(UsageError, match="no model"):
        create_app({})


def test_a_process_serves_several_artifacts(demo_artifact: Artifact, encoder_artifact: Artifact) -> None:
    artifacts = [("chat", str(demo_artifact.path)), (None, str(encoder_artifact.path))]
    with ServerProcess(demo_artifact.path, artifacts=artifacts) as server:
        wait_until(lambda: server.said("chat is ready on") and server.said("minilm-l6 is ready on"), "loading")

        assert server.said("serving chat, minilm-l6 at http")
        assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["chat", "minilm-l6"]
