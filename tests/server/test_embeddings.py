"""Embeddings of the official client are those of the encoder, pooled as its source says."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from live_server import health, listening
from numpy.typing import NDArray

from aicc.runtime.server import create_app
from aicc.runtime.session import Session

TEXTS = ["A cat sleeps.", "A kitten is napping.", "The stock market fell sharply on Tuesday, and so did bonds."]


@pytest.fixture(scope="module")
def url(encoder: Session) -> Iterator[str]:
    with listening(create_app({"minilm": encoder})) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors_of(client: openai.OpenAI, texts: Any, **options: Any) -> NDArray[np.float64]:
    answer = client.embeddings.create(model="minilm", input=texts, **options)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


def expected(encoder: Session, text: str) -> NDArray[np.float64]:
    """The mean of the last hidden states of one text, of length 1."""
    ids = np.array([encoder.embedder.tokenize(text)])
    states = encoder.run({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    mean = states["last_hidden_state"][0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_a_vector_is_the_normalised_mean_of_the_hidden_states(client: openai.OpenAI, encoder: Session) -> None:
    found = vectors_of(client, TEXTS)

    np.testing.assert_allclose(found, [expected(encoder, text) for text in TEXTS], atol=1e-5)
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[2]


def test_a_text_has_its_vector_whatever_is_beside_it(client: openai.OpenAI) -> None:
    many = vectors_of(client, [*TEXTS, "word " * 200, *TEXTS] * 12)  # more than one batch

    np.testing.assert_allclose(many[:3], [vectors_of(client, text)[0] for text in TEXTS], atol=1e-5)
    np.testing.assert_allclose(many[4:7], many[:3], atol=1e-5)


def test_both_encodings_hold_the_same_numbers(client: openai.OpenAI, url: str) -> None:
    asked = {"model": "minilm", "input": TEXTS[0]}
    packed = httpx.post(f"{url}/v1/embeddings", json=asked | {"encoding_format": "base64"}).json()["data"][0]
    plain = vectors_of(client, TEXTS[0], encoding_format="float")

    assert np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").tolist() == plain[0].tolist()


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI, encoder: Session) -> None:
    ids = [encoder.embedder.tokenize(text) for text in TEXTS]

    np.testing.assert_allclose(vectors_of(client, ids), vectors_of(client, TEXTS), atol=1e-6)
    np.testing.assert_allclose(vectors_of(client, ids[0]), vectors_of(client, TEXTS[0]), atol=1e-6)


def test_usage_counts_the_tokens_read(client: openai.OpenAI, encoder: Session) -> None:
    usage = client.embeddings.create(model="minilm", input=TEXTS).usage

    assert usage.prompt_tokens == usage.total_tokens == sum(len(encoder.embedder.tokenize(text)) for text in TEXTS)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"dimensions": 64}, "dimensions", "unsupported_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": [[1, 30_522]]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": ["a", "word " * 300]}, "input[1]", "context_length_exceeded"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"pooling": "cls"}, "pooling", "unknown_parameter"),
    ],
)
def test_what_cannot_be_embedded_is_a_400(url: str, change: dict[str, Any], param: str, code: str) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": "Hi"} | change)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert health(url)["sequences"] == 0


def test_a_language_model_makes_no_embeddings(client: openai.OpenAI, running_server: str) -> None:
    with (
        openai.OpenAI(base_url=f"{running_server}/v1", api_key="none") as decoder,
        pytest.raises(openai.BadRequestError, match="not an encoder"),
    ):
        decoder.embeddings.create(model="smollm2", input="Hi")
