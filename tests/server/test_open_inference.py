"""The Open Inference Protocol: Triton's own client, and what it would not send."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from environments import environment
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from live_server import health, listening

from aicc.runtime.server import ApiKeys, Front, create_app
from aicc.runtime.server.open_inference import numbers
from aicc.runtime.server.open_inference.tensors import Entry
from aicc.runtime.server.registry import served
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
        ({"shape": [1, 2]}, "'inputs[0].data'"),
        ({"shape": [2**40] * 32}, "'inputs[0].data'"),
        ({"shape": [2**40] * 33}, "'inputs[0].shape'"),
        ({"shape": [10**4000, 3]}, "'inputs[0].shape"),
        ({"shape": [-1, 3]}, "'inputs[0].shape'"),
        ({"shape": [-1, -3]}, "'inputs[0].shape'"),
        ({"shape": [0, 3], "data": []}, "'inputs[0].shape'"),
        ({"shape": [3, 1]}, "must agree"),
        ({"shape": [3, 1], "data": [[1, 1, 1]]}, "'inputs[0].data'"),
        ({"data": [True, 1, 1]}, "'inputs[0].data'"),
        ({"data": 1}, "'inputs[0].data'"),
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


def test_every_signature_is_a_version(small: Session) -> None:
    inputs = [
        {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [[0.5] * 8]},
        {"name": "negate", "shape": [], "datatype": "BOOL", "data": [True]},
        {"name": "fixed", "shape": [2], "datatype": "INT64", "data": [3, -4]},
    ]
    with listening(create_app({"small": small})) as url:
        model = f"{url}/v2/models/small"
        cards = [httpx.get(address).json() for address in (model, f"{model}/versions/doubling")]
        found = [
            httpx.post(f"{model}{path}/infer", json={"inputs": inputs}).json()
            for path in ("", "/versions/default", "/versions/doubling")
        ]
        ready = httpx.get(f"{model}/versions/doubling/ready").json()
        unknown = [httpx.get(f"{model}/versions/2{path}") for path in ("", "/ready")]
        unknown.append(httpx.post(f"{model}/versions/2/infer", json={"inputs": inputs}))

    assert [card["versions"] for card in cards] == [["default", "doubling"]] * 2
    assert [[output["name"] for output in card["outputs"]] for card in cards] == [["y", "doubled"], ["doubled"]]
    assert found[0] == found[1]
    assert [answer["model_version"] for answer in found] == ["default", "default", "doubling"]
    assert found[2]["outputs"] == [{"name": "doubled", "datatype": "INT64", "shape": [2], "data": [6, -8]}]
    assert ready == {"name": "small", "ready": True}
    assert [answer.status_code for answer in unknown] == [404] * 3
    assert "It has: default, doubling." in unknown[0].json()["error"]


def test_tensors_of_many_numbers_come_whole(small: Session) -> None:
    given = {"x": np.random.default_rng(0).standard_normal((600, 8), np.float32)}
    given |= {"negate": np.array(False), "fixed": np.array([1, 2])}
    types = {"x": "FP32", "negate": "BOOL", "fixed": "INT64"}
    inputs = [
        {"name": name, "shape": array.shape, "datatype": types[name], "data": array.reshape(-1).tolist()}
        for name, array in given.items()
    ]
    nested = [inputs[0] | {"data": given["x"].tolist()}, *inputs[1:]]
    with listening(create_app({"small": small})) as url:
        for body in (inputs, nested):
            answer = httpx.post(f"{url}/v2/models/small/infer", json={"inputs": body}, timeout=60).json()
            found = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])

            np.testing.assert_array_equal(found, small.run(given)["y"])


def test_what_takes_long_leaves_the_event_loop_alone(small: Session) -> None:
    model = served("small", small.manifest, lambda: small, 1)
    try:
        threads = [asyncio.run(Entry(model, "default").apart(n, threading.current_thread)) for n in (1000, 10**6)]  # type: ignore[arg-type]
    finally:
        model.stop()

    assert threads[0] is threading.current_thread()
    assert threads[1].name.startswith("aicc-text")


@given(
    arrays.array_shapes(max_dims=4, max_side=6).flatmap(
        lambda shape: st.sampled_from(["bool", "int8", "uint64", "int64", "float32", "float64"]).flatmap(
            lambda dtype: arrays.arrays(
                dtype, shape, elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None
            )
        )
    ),
    st.booleans(),
    st.sampled_from([3, 10, 1 << 16]),
)
def test_numbers_are_what_was_written(array: np.ndarray, nested: bool, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "_PIECE", piece)
        json_ = json.dumps(array.tolist()).encode() if nested else bytes(numbers.write(array))
        found = numbers.read(json_, array.dtype, array.shape)

        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        for other in ((array.size + 1,), (*array.shape, 2), (2**40,) * 3):
            with pytest.raises(ValueError, match="do not fit"):
                numbers.read(json_, array.dtype, other)


@pytest.mark.parametrize("text", ['"1,2,3,4"', '["1,2","3,4"]', '[[1,2],"3,4"]', "1,2,3,4"])
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_text_of_numbers_is_no_list(text: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_PIECE", 3)
    with pytest.raises(ValueError, match="do not fit"):
        numbers.read(text.encode(), np.dtype("int64"), shape)


@pytest.mark.parametrize("piece", [3, 1 << 16])
@pytest.mark.parametrize("wrong", ['"1,2"', "null", "[1]", '{"a":1}', "1.5", "true", "256", "-1", "1,1"])
def test_what_is_no_list_of_numbers_is_found_in_any_piece(
    wrong: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "_PIECE", piece)
    for place in range(12):
        texts = [str(place)] * 12
        texts[place] = wrong
        with pytest.raises(ValueError, match="do not fit"):
            numbers.read(f"[{','.join(texts)}]".encode(), np.dtype("uint8"), (3, 4))
