"""The Open Inference Protocol over gRPC: Triton's own client, what it would not send, and who may ask what."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from environments import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import DEADLINE, ServerProcess, wait_until

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import MismatchError, UsageError
from aicc.runtime.server import ApiKeys, Front, Limits, serve
from aicc.runtime.server.app import Service
from aicc.runtime.server.open_inference import open_inference_pb2 as pb
from aicc.runtime.server.open_inference.rpc_server import start
from aicc.runtime.server.recording import AccessLog
from aicc.runtime.server.registry import Registry, Tensors, served
from aicc.runtime.session import Session

LIMITS, FRONT = Limits(), Front()
PATH = "/inference.GRPCInferenceService/"
X = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)
GIVEN = {"x": X, "negate": np.array(True), "fixed": np.array([3, -4])}
FIELDS = {"float32": ("FP32", "fp32_contents"), "bool": ("BOOL", "bool_contents"), "int64": ("INT64", "int64_contents")}
Input = pb.ModelInferRequest.InferInputTensor
Contents = pb.InferTensorContents


class Rpc:
    """A server in this process, and a client of it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.port = port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    @property
    def model(self) -> Tensors:
        [model] = self.service.registry
        return model  # type: ignore[return-value]

    async def call(self, name: str, message: Any = b"", **options: Any) -> Any:
        """The answer, or the error there is instead."""
        kind = name.rpartition("/")[2]
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            answer = await self.channel.unary_unary(name if name[0] == "/" else PATH + name)(raw, **options)
        except grpc.aio.AioRpcError as error:
            return error
        return getattr(pb, f"{kind}Response").FromString(answer)


@asynccontextmanager
async def serving(
    session: Session, limits: Limits = LIMITS, front: Front = FRONT, idle_seconds: float = 30
) -> AsyncIterator[Rpc]:
    service = Service(Registry([served("small", session.manifest, lambda: session, limits.sequences)]), limits, front)
    [model] = service.registry
    model.thread.start()
    wait_until(lambda: model.thread.state == "ready", "loading")
    server, port = await start(service, "127.0.0.1", 0, None, idle_seconds)
    rpc = Rpc(service, port)
    try:
        yield rpc
    finally:
        await rpc.channel.close()
        await server.stop(0)
        await asyncio.to_thread(model.stop)


def typed(**change: Any) -> Any:
    inputs = []
    for name, array in GIVEN.items():
        datatype, field = FIELDS[array.dtype.name]
        contents = Contents(**{field: array.ravel().tolist()})
        inputs.append(Input(name=name, datatype=datatype, shape=array.shape, contents=contents))
    return pb.ModelInferRequest(**({"model_name": "small", "inputs": inputs} | change))


def raw(**change: Any) -> Any:
    request = typed(**change)
    for tensor in request.inputs:
        tensor.ClearField("contents")
    request.raw_input_contents.extend(array.tobytes() for array in GIVEN.values())
    return request


def test_triton_s_client_gets_what_the_model_gives(
    encoder: Session, encoder_artifact: Artifact, tmp_path: Path
) -> None:
    ids = np.array([encoder.embedder.tokenize(text) for text in ("One two three", "Three two one")])
    given = dict(zip(("input_ids", "attention_mask", "token_type_ids"), (ids, ids * 0 + 1, ids * 0), strict=True))
    np.savez(tmp_path / "given.npz", **given)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(tmp_path / "cert.pem"), append=True)
    (tmp_path / "keys").write_text("secret")
    source = Path(__file__).parent / "triton_client"
    python = environment(source / "requirements.txt")

    with ServerProcess(
        encoder_artifact.path,
        artifacts=[("minilm", str(encoder_artifact.path))],
        grpc_port=0,
        api_key_file=str(tmp_path / "keys"),
        tls_certificate=str(tmp_path / "cert.pem"),
        tls_key=str(tmp_path / "key.pem"),
        access_log=str(tmp_path / "log"),
    ) as server:
        server.wait_ready()
        [port] = [line.split()[-1] for line in server.lines if "gRPC" in line]
        subprocess.run([python, source / "client_grpc.py", f"localhost:{port}", tmp_path], check=True, timeout=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0

    [expected] = encoder.run(given).values()
    for way in ("True", "False"):
        np.testing.assert_allclose(np.load(tmp_path / f"rpc-{way}.npy"), expected, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["path"].removeprefix(PATH) for line in lines} == {
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
    }
    assert [line["client"] for line in lines if line["status"] == 401] == ["127.0.0.1"]


@pytest.mark.parametrize("request_of", [typed, raw])
def test_numbers_and_bytes_mean_the_same(small: Session, request_of: Callable[..., Any]) -> None:
    async def ask() -> tuple[Any, Any]:
        async with serving(small) as rpc:
            wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="doubled")]
            some = request_of(id="7", outputs=wanted, model_version="default")
            return await rpc.call("ModelInfer", request_of()), await rpc.call("ModelInfer", some)

    whole, some = asyncio.run(ask())
    expected = small.run(GIVEN)
    found = {}
    for i, told in enumerate(whole.outputs):
        dtype = expected[told.name].dtype
        if request_of is raw:
            array = np.frombuffer(whole.raw_output_contents[i], dtype)
        else:
            array = np.array(getattr(told.contents, FIELDS[dtype.name][1]), dtype)
        found[told.name] = array.reshape(told.shape)

    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert (whole.model_name, whole.model_version, whole.id) == ("small", "default", "")
    assert (some.id, [told.name for told in some.outputs]) == ("7", ["doubled"])


def test_tensors_of_many_numbers_come_whole(small: Session) -> None:
    x = np.random.default_rng(0).standard_normal((600, 8), np.float32)

    async def ask() -> Any:
        async with serving(small) as rpc:
            request = typed()
            request.inputs[0].CopyFrom(
                Input(name="x", datatype="FP32", shape=x.shape, contents=Contents(fp32_contents=x.ravel().tolist()))
            )
            return await rpc.call("ModelInfer", request)

    [y, _] = asyncio.run(ask()).outputs
    found = np.array(y.contents.fp32_contents, np.float32).reshape(y.shape)
    np.testing.assert_array_equal(found, small.run(GIVEN | {"x": x})["y"])


def test_every_signature_is_a_version(small: Session) -> None:
    async def ask() -> list[Any]:
        async with serving(small) as rpc:
            return [
                await rpc.call("ModelMetadata", pb.ModelMetadataRequest(name="small", version="doubling")),
                await rpc.call("ModelReady", pb.ModelReadyRequest(name="small", version="doubling")),
                await rpc.call("ModelInfer", typed(model_version="doubling")),
                await rpc.call("ModelMetadata", pb.ModelMetadataRequest(name="small", version="2")),
            ]

    card, ready, found, unknown = asyncio.run(ask())
    assert list(card.versions) == ["default", "doubling"]
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in card.inputs] == [
        ("x", "FP32", [-1, 8]),
        ("negate", "BOOL", []),
        ("fixed", "INT64", [2]),
    ]
    assert [tensor.name for tensor in card.outputs] == ["doubled"]
    assert ready.ready
    assert [list(told.contents.int64_contents) for told in found.outputs] == [[6, -8]]
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "It has: default, doubling." in unknown.details()


FIRST = {"name": "x", "datatype": "FP32", "shape": [2, 8], "contents": Contents(fp32_contents=[0.5] * 16)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [2, 9]}, "'inputs[0].contents'"),
        ({"shape": [2**40] * 32}, "'inputs[0].contents'"),
        ({"shape": [2**41, 8]}, "'inputs[0].shape'"),
        ({"shape": [1] * 33}, "'inputs[0].shape'"),
        ({"shape": [-2, -8]}, "'inputs[0].shape'"),
        ({"shape": [0, 8], "contents": Contents()}, "'inputs[0].shape'"),
        ({"shape": [16]}, "'inputs'"),
        ({"datatype": "FP64"}, "'inputs[0].contents'"),
        ({"datatype": "BYTES"}, "'inputs[0].datatype'"),
        ({"datatype": "FP16"}, "raw_input_contents"),
        ({"datatype": "INT8", "contents": Contents(int_contents=[300] * 16)}, "outside of INT8"),
        ({"datatype": "UINT16", "contents": Contents(uint_contents=[2**16] * 16)}, "outside of UINT16"),
        ({"contents": Contents(fp32_contents=[0.5] * 16, bool_contents=[True])}, "'inputs[0].contents'"),
        ({"contents": Contents(fp64_contents=[0.5] * 16)}, "'inputs[0].contents'"),
        ({"contents": None}, "'inputs[0].contents'"),
        ({"name": "negate"}, "'inputs[1].name'"),
        ({"name": "nothing"}, "'inputs'"),
        ({"parameters": {"shared_memory_region": pb.InferParameter(string_param="r")}}, "'inputs[0].parameters.shared"),
    ],
)
def test_what_is_no_input_of_the_model_is_refused(small: Session, change: dict[str, Any], says: str) -> None:
    async def ask() -> Any:
        async with serving(small) as rpc:
            return await rpc.call("ModelInfer", typed(inputs=[Input(**(FIRST | change)), *typed().inputs[1:]]))

    error = asyncio.run(ask())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()


def test_what_is_no_request_is_refused(small: Session) -> None:
    fewer, longer, mixed, wanted = raw(), raw(), raw(), typed()
    del fewer.raw_input_contents[2]
    longer.raw_input_contents[0] += b"\0"
    mixed.inputs[0].contents.fp32_contents.append(1)
    wanted.outputs.add(name="nothing")
    twice = typed()
    for _ in range(2):
        twice.outputs.add(name="y")
    unknown = typed()
    unknown.inputs[0].MergeFromString(b"\x98\x06\x01")
    refused: dict[str, Any] = {
        "'raw_input_contents' has 2": fewer,
        "has 65 bytes": longer,
        "'inputs[0]' has contents": mixed,
        "no output 'nothing'": wanted,
        "one output twice": twice,
        "'parameters.priority'": typed(parameters={"priority": pb.InferParameter(int64_param=1)}),
        "a field of number 99": unknown,
        "none of the protocol's": b"\xff\xff",
        "'inputs[0].shape'": typed(inputs=[Input(name="x", datatype="FP32", shape=[2**62] * 2)]),
    }

    async def ask() -> dict[str, Any]:
        async with serving(small) as rpc:
            return {says: await rpc.call("ModelInfer", message) for says, message in refused.items()}

    for says, error in asyncio.run(ask()).items():
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in error.details()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        pytest.param(b"\x2a\x00", "1000 inputs", id="inputs"),
        pytest.param(b"\x32\x00", "as many outputs", id="outputs"),
        pytest.param(b"\x98\x06\x01", "has 450000 bytes of fields", id="unknown fields"),
    ],
)
def test_a_message_of_very_many_parts_costs_no_python_object_for_each(small: Session, part: bytes, says: str) -> None:
    message = part * (450_000 // len(part))

    async def ask() -> tuple[Any, int]:
        async with serving(small) as rpc:
            await rpc.call("ServerReady")
            tracemalloc.start()
            try:
                return await rpc.call("ModelInfer", message), tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    error, peak = asyncio.run(ask())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()
    assert peak < 8 * len(message)


VALID = [request.SerializeToString() for request in (typed(), raw())]


@settings(max_examples=60)
@given(
    st.binary(max_size=200)
    | st.builds(
        lambda valid, at, other: valid[:at] + other + valid[at + 1 :],
        st.sampled_from(VALID),
        st.integers(0, 300),
        st.binary(max_size=3),
    )
)
def test_hostile_messages_are_answered(hostile: Rpc, run: Callable[..., Any], message: bytes) -> None:
    answer = run(hostile.call("ModelInfer", message))

    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    wait_until(lambda: hostile.model.thread.open == 0, "finishing")


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    """Runs coroutines, one after the other, on one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def hostile(small: Session, run: Callable[..., Any]) -> Iterator[Rpc]:
    context = serving(small)
    yield run(context.__aenter__())
    run(context.__aexit__(None, None, None))


def test_every_method_but_health_needs_a_key(small: Session) -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        async with serving(small, front=Front(keys=ApiKeys([b"secret"]))) as rpc:
            names = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "/any/Thing")
            bad: list[tuple[tuple[str, str], ...]] = [
                (),
                (("authorization", "Bearer wrong"),),
                (("authorization", "secret"),),
                (("authorization", "Bearer secret"),) * 2,
            ]
            closed = [await rpc.call(name, metadata=metadata) for name in names for metadata in bad]
            key = (("authorization", "Bearer secret"),)
            opened = [await rpc.call(name) for name in ("ServerLive", "ServerReady")]
            return closed, [*opened, await rpc.call("ModelInfer", typed(), metadata=key)]

    closed, opened = asyncio.run(ask())
    assert {error.code() for error in closed} == {grpc.StatusCode.UNAUTHENTICATED}
    assert closed[0].trailing_metadata()["www-authenticate"] == "Bearer"
    assert (opened[0].live, opened[1].ready, opened[2].model_name) == (True, True, "small")


def test_calls_are_counted_and_logged(small: Session, tmp_path: Path) -> None:
    async def ask() -> bytes:
        log = AccessLog(tmp_path / "log", prompts=True)
        async with serving(small, front=Front(access_log=log)) as rpc:
            await rpc.call("ServerReady")
            await rpc.call("ModelInfer", raw(), metadata=(("x-request-id", "mine"),))
            failed = await rpc.call("ModelInfer", raw(model_name="none"), metadata=(("x-request-id", "other"),))
            unknown = await rpc.call("/inference.GRPCInferenceService/ModelStreamInfer")
            assert failed.trailing_metadata()["x-request-id"] == "other"
            assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED
            [metrics] = [route.endpoint for route in rpc.service.metrics.routes()]
            return (await metrics(None)).body  # type: ignore[arg-type,no-any-return]

    counted = asyncio.run(ask()).decode()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["request_id"], line["status"]) for line in lines[:2]] == [("mine", 200), ("other", 404)]
    assert [line["path"] for line in lines] == [PATH + "ModelInfer"] * 2 + [PATH + "ModelStreamInfer"]
    assert json.loads(lines[0]["body"])["model_name"] == "small"
    assert "raw_input_contents" not in lines[0]["body"]
    for model, outcome in (("small", "ok"), ("", "invalid")):
        line = f'aicc_requests_total{{endpoint="{PATH}ModelInfer",model="{model}",outcome="{outcome}"}} 1.0'
        assert line in counted


def test_messages_have_a_size_and_are_not_compressed(small: Session) -> None:
    async def ask() -> list[Any]:
        async with serving(small, Limits(body_bytes=10_000)) as rpc:
            return [
                await rpc.call("ModelInfer", bytes(10_001)),
                await rpc.call("ModelInfer", typed(), compression=grpc.Compression.Gzip),
                await rpc.call("ModelInfer", typed(id="x" * 9000)),
            ]

    large, compressed, small_enough = asyncio.run(ask())
    assert large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert compressed.code() is grpc.StatusCode.UNIMPLEMENTED
    assert small_enough.id == "x" * 9000


def test_large_messages_have_room_together_and_small_ones_always(small: Session) -> None:
    most = 128 << 10
    large = typed(id="x" * (most - 1000))

    async def ask() -> tuple[Any, Any, Any]:
        async with serving(small, Limits(body_bytes=most)) as rpc:
            free = threading.Event()
            rpc.model.thread.submit(lambda session: free.wait(DEADLINE))
            calls = [asyncio.ensure_future(rpc.call("ModelInfer", large)) for _ in range(70)]
            refused, _ = await asyncio.wait(calls, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            while rpc.model.thread.open < 60:  # so many have room, when 64 KiB of each do not count
                await asyncio.sleep(0)
            taken = asyncio.ensure_future(rpc.call("ModelInfer", typed()))
            free.set()
            await asyncio.gather(*calls)
            return refused.pop().result(), await taken, await rpc.call("ModelInfer", large)

    refused, taken, later = asyncio.run(ask())
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "large bodies in memory" in refused.details()
    assert int(refused.trailing_metadata()["retry-after"]) >= 1
    assert (taken.model_name, later.model_name) == ("small", "small")


def test_who_leaves_is_forgotten(small: Session, tmp_path: Path) -> None:
    async def ask() -> None:
        async with serving(small, front=Front(access_log=AccessLog(tmp_path / "log"))) as rpc:
            free = threading.Event()
            rpc.model.thread.submit(lambda session: free.wait(DEADLINE))
            calls = [asyncio.ensure_future(rpc.call("ModelInfer", typed())) for _ in range(10)]
            while rpc.model.thread.open < 11:
                await asyncio.sleep(0)
            for call in calls[:5]:
                call.cancel()
            await rpc.channel.close()
            while rpc.service.drain.open > 0:
                await asyncio.sleep(0)
            free.set()
            wait_until(lambda: rpc.model.thread.open == 0, "finishing")

    asyncio.run(ask())
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["status"], line["path"]) for line in lines] == [(499, PATH + "ModelInfer")] * 10


def test_a_busy_model_has_limits(small: Session) -> None:
    async def ask() -> list[Any]:
        async with serving(small, Limits(sequences=2, request_seconds=0.2)) as rpc:
            free = threading.Event()
            rpc.model.thread.submit(lambda session: free.wait(DEADLINE))
            late = await rpc.call("ModelInfer", typed())
            full = await rpc.call("ModelInfer", typed())
            free.set()
            wait_until(lambda: rpc.model.thread.open == 0, "finishing")
            return [late, full, await rpc.call("ModelInfer", typed())]

    late, full, found = asyncio.run(ask())
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert full.trailing_metadata()["retry-after"] == "1"
    assert found.model_name == "small"


def test_a_server_that_ends_finishes_what_runs_and_takes_no_more(small: Session) -> None:
    async def ask() -> list[Any]:
        async with serving(small) as rpc:
            free = threading.Event()
            rpc.model.thread.submit(lambda session: free.wait(DEADLINE))
            running = asyncio.ensure_future(rpc.call("ModelInfer", typed()))
            while rpc.model.thread.open < 2:
                await asyncio.sleep(0)
            rpc.service.drain.draining = True
            found = [await rpc.call("ModelInfer", typed()), await rpc.call("ServerReady"), await rpc.call("ServerLive")]
            assert rpc.service.drain.open == 1
            free.set()
            return [*found, await running]

    refused, ready, live, finished = asyncio.run(ask())
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.trailing_metadata()["retry-after"] == "1"
    assert (ready.ready, live.live) == (False, True)
    assert finished.model_name == "small"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2's (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def opening(window: int) -> bytes:
    """A connection's first bytes and a call's headers; its answer may have so many bytes until told otherwise."""
    headers = {":method": "POST", ":scheme": "http", ":path": f"{PATH}ModelInfer", ":authority": "localhost"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(  # literals, neither indexed nor compressed (RFC 7541, section 6.2.2)
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    settings = frame(4, 0, 0, (4).to_bytes(2, "big") + window.to_bytes(4, "big"))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + frame(1, 4, 1, block)


MESSAGE = b"\0" + len(VALID[0]).to_bytes(4, "big") + VALID[0]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (opening(1 << 16), 408),
        (opening(1 << 16) + frame(0, 0, 1, MESSAGE[:20]), 408),
        (opening(0) + frame(0, 1, 1, MESSAGE), 499),
    ],
    ids=["nothing", "HTTP/1.1", "no message", "half a message", "an answer that is not read"],
)
def test_who_stands_still_is_closed(small: Session, tmp_path: Path, sent: bytes, status: int | None) -> None:
    async def stand_still() -> None:
        limits = Limits(body_seconds=0.1, request_seconds=0.1)
        front = Front(access_log=AccessLog(tmp_path / "log"))
        async with serving(small, limits, front, idle_seconds=0.1) as rpc:
            reader, writer = await asyncio.open_connection("127.0.0.1", rpc.port)
            writer.write(sent)
            async with asyncio.timeout(DEADLINE):
                while await reader.read(65536):
                    pass
            writer.close()
            assert rpc.service.drain.open == 0

    asyncio.run(stand_still())
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["status"] for line in lines] == ([] if status is None else [status])


def test_the_messages_in_python_are_those_of_the_protocol_file() -> None:
    script = Path(__file__).parents[2] / "docs" / "generate.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr or "run `make docs`"


def test_a_port_that_is_taken_is_no_port(small: Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="--grpc-port"):
        serve([("small", small.artifact.path)], port=0, grpc_port=other.getsockname()[1], announce=lambda line: None)


def test_without_the_extra_the_option_names_it(small: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("aicc.runtime.server.open_inference.rpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(MismatchError, match=r"aicc\[grpc\]"):
        serve([("small", small.artifact.path)], port=0, grpc_port=0)
