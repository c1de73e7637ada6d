"""The Open Inference Protocol: Triton's own client, and what it would not send."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from environments import environment
from live_server import health, listening

from aicc.runtime.server import ApiKeys, Front, create_app
from aicc.runtime.session import Session

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def url(encoder: Session) -> Iterator[str]:
    with listening(create_app({"minilm": encoder})) as url:
        yield url


def tensor(name: str, **change: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1, 3], "datatype": "INT64", "data": [1, 1, 1]} | change


def infer(url: str, first: dict[str, Any], **more: Any) -> httpx.Response:
    body = {"inputs": [first, *(tensor(name) for name in NAMES[1:])]} | more
    return httpx.post(f"{url}/v2/models/minilm/infer", json=body)


def test_triton_s_client_gets_what_the_model_gives(url: str, encoder: Session, tmp_path: Path) -> None:
    ids = np.array([encoder.embedder.tokenize(text) for text in ("One two three", "Three two one")])
    given = dict(zip(NAMES, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    np.savez(tmp_path / "given.npz", **given)
    source = Path(__file__).parent / "triton_client"

    subprocess.run(
        [environment(source / "requirements.txt"), source / "client.py", url.removeprefix("http://"), tmp_path],
        check=True,
        timeout=60,
    )

    [expected] = encoder.run(given).values()
    for way in ("True-True", "True-False", "False-True", "False-False"):
        np.testing.assert_allclose(np.load(tmp_path / f"{way}.npy"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [1, 2]}, "'inputs[0].data' has the shape"),
        ({"shape": [2**40] * 32}, "'inputs[0].data' has the shape"),
        ({"shape": [-1, 3]}, "'inputs[0].shape[0]'"),
        ({"shape": [0, 3], "data": []}, "'inputs[0].shape'"),
        ({"shape": [3]}, "'inputs'"),
        ({"datatype": "INT32"}, "'inputs'"),
        ({"datatype": "BYTES"}, "'inputs[0].datatype'"),
        ({"datatype": "UINT8", "data": [1, 2, 300]}, "'inputs[0].data'"),
        ({"datatype": "FP16", "data": [1, 2, 1e9]}, "'inputs[0].data'"),
        ({"data": [1, 2, 0.5]}, "'inputs[0].data'"),
        ({"data": [1, 2, "3"]}, "'inputs[0].data'"),
        ({"data": [1, 2, 2**70]}, "'inputs[0].data'"),
        ({"data": [[1, 2], [3]]}, "'inputs[0].data'"),
        ({"data": [1, 2, 10**9]}, "'inputs'"),
        ({"data": [1, 2, -1]}, "'inputs'"),
        ({"data": None}, "'inputs[0]'"),
        ({"parameters": {"binary_data_size": 24}}, "'inputs[0]'"),
        ({"parameters": {"shared_memory_region": "r"}}, "'inputs[0].parameters.shared_memory_region'"),
        ({"shape": [1, 600], "data": [1] * 600}, "'inputs'"),
        ({"shape": [100, 100], "data": [1] * 10_000}, "'inputs'"),
        ({"name": "attention_mask"}, "'inputs[1].name'"),
        ({"name": "nothing"}, "'inputs'"),
    ],
)
def test_what_is_no_input_of_the_model_is_a_400(url: str, change: dict[str, Any], says: str) -> None:
    answer = infer(url, tensor("input_ids") | change)

    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]
    assert health(url)["sequences"] == 0


def test_what_is_no_output_of_the_model_is_a_400(url: str) -> None:
    assert "'outputs[0]'" in infer(url, tensor("input_ids"), outputs=[{"name": "nothing"}]).json()["error"]
    assert infer(url, tensor("input_ids")).status_code == 200


@pytest.mark.parametrize(
    ("size", "declared", "behind"),
    [(24, None, 23), (24, None, 25), (23, None, 23), (0, None, 0), (2**40, None, 24), (24, 10**9, 24), (24, "-1", 24)],
)
def test_bytes_that_are_not_as_many_as_they_should_be_are_a_400(
    url: str, size: int, declared: Any, behind: int
) -> None:
    first = {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [first, *(tensor(name) for name in NAMES[1:])]}).encode()
    headers = {"inference-header-content-length": str(declared or len(head))}

    answer = httpx.post(f"{url}/v2/models/minilm/infer", content=head + bytes(behind), headers=headers)

    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("body", [b"", b"{", b'{"id": "\xff"}', b'{"inputs":[{"data":' + b"[" * 100_000])
def test_hostile_bodies_are_answered(url: str, body: bytes) -> None:
    answer = httpx.post(f"{url}/v2/models/minilm/infer", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]


def test_web_pages_cannot_send_tensors_without_asking(url: str) -> None:
    for headers in ({"origin": "https://elsewhere.example"}, {"content-type": "text/plain"}):
        assert httpx.post(f"{url}/v2/models/minilm/infer", content=b"{}", headers=headers).status_code == 415


def test_health_needs_no_key_and_the_rest_does(encoder: Session) -> None:
    with listening(create_app({"minilm": encoder}, front=Front(keys=ApiKeys([b"secret"])))) as url:
        codes = [httpx.get(f"{url}/v2{path}").status_code for path in ("/health/live", "/health/ready", "")]

    assert codes == [200, 200, 401]
