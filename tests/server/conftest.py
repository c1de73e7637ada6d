from collections.abc import Iterator

import httpx
import openai
import pytest
from live_server import NAME, listening, wait_idle
from small_tensors import write_small

from aicc.runtime import load
from aicc.runtime.artifact import Artifact, Signature
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable, LoadOptions, provider_of
from aicc.runtime.server import create_app
from aicc.runtime.session import Session
from aicc.runtime.target import find_target


@pytest.fixture(scope="session")
def executable(demo_artifact: Artifact) -> Iterator[DecoderExecutable]:
    """The demo model on this machine's processor, loaded once."""
    variant = demo_artifact.variant(None)
    loaded = provider_of(find_target(variant.target)).load(demo_artifact, variant, LoadOptions())
    assert isinstance(loaded, DecoderExecutable)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def model(executable: DecoderExecutable, demo_artifact: Artifact) -> Model:
    return Model(executable, demo_artifact)


@pytest.fixture(scope="session")
def encoder(encoder_artifact: Artifact) -> Iterator[Session]:
    """The demo encoder, loaded once."""
    with load(encoder_artifact.path) as session:
        assert isinstance(session, Session)
        yield session


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A model of several types, with a second signature that gives one of its outputs."""
    folder = tmp_path_factory.mktemp("small")
    default = write_small(folder / "first.aicc", "reference:cpu").manifest.signatures["default"]
    more = {"doubling": Signature(default.inputs, default.outputs[1:])}
    with load(write_small(folder / "small.aicc", "reference:cpu", more=more).path) as session:
        assert isinstance(session, Session)
        yield session


@pytest.fixture(scope="session")
def running_server(model: Model) -> Iterator[str]:
    with listening(create_app({NAME: model})) as url:
        yield url


@pytest.fixture
def url(running_server: str) -> Iterator[str]:
    """A server over the demo model, idle before and after the test."""
    yield running_server
    wait_idle(running_server)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The official client, as anybody would point it at a server."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http
