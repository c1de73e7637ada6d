"""The Open Inference Protocol (KServe v2) over REST: tensors in, tensors out, as JSON or as bytes behind it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import AiccError
from aicc.runtime.server.answering import in_time
from aicc.runtime.server.bodies import BodyReader, json_response
from aicc.runtime.server.errors import ApiError, decode_error, from_foreseen, invalid
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Registry, Tensors
from aicc.runtime.session import Session

_HEADER = "inference-header-content-length"
_DTYPES = {
    "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_TENSORS = 1000
_MOST_TOKENS = 4096  # of the texts of one request, padding included

Size = Annotated[int, Meta(ge=0, le=2**40)]
Shape = Annotated[list[Size], Meta(max_length=32)]


class InputParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of an input: how many bytes behind the JSON are its."""

    binary_data_size: Size | None = None


class Input(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A tensor that is given. ``data`` is flat or nested, in row-major order."""

    name: str
    shape: Shape
    datatype: str
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of an output that is asked for."""

    binary_data: bool | None = None


class Wanted(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of a request: whether outputs that do not say are bytes."""

    binary_data_output: bool | None = None


class InferRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of ``POST /v2/models/{name}/infer``. Without ``outputs`` all are meant."""

    inputs: Annotated[list[Input], Meta(max_length=_MAX_TENSORS)]
    outputs: Annotated[list[Wanted], Meta(max_length=_MAX_TENSORS)] | None = None
    id: Annotated[str, Meta(max_length=1000)] | UnsetType = UNSET
    parameters: InferParameters = InferParameters()


class BinarySize(msgspec.Struct, frozen=True):
    """How many bytes behind the JSON are an output's."""

    binary_data_size: int


class Output(msgspec.Struct, frozen=True):
    """A tensor that comes back."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: BinarySize | UnsetType = UNSET


class InferAnswer(msgspec.Struct, frozen=True):
    """Answer of ``POST /v2/models/{name}/infer``."""

    model_name: str
    outputs: list[Output]
    id: str | UnsetType = UNSET


class TensorCard(msgspec.Struct, frozen=True):
    """An input or output; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelCard(msgspec.Struct, frozen=True):
    """Answer of ``GET /v2/models/{name}``."""

    name: str
    inputs: list[TensorCard]
    outputs: list[TensorCard]
    platform: str = "aicc"


class ServerCard(msgspec.Struct, frozen=True):
    """Answer of ``GET /v2``."""

    version: str
    name: str = "aicc"
    extensions: tuple[str, ...] = ("binary_tensor_data",)


class Readiness(msgspec.Struct, frozen=True):
    """Answer of ``GET /v2/models/{name}/ready``."""

    name: str
    ready: bool


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Its endpoints over some models of tensors; health is with the server's own."""
    decoder = msgspec.json.Decoder(InferRequest)

    async def server(request: Request) -> Response:
        """``GET /v2``."""
        return json_response(ServerCard(metadata.version("aicc")))

    async def ready(request: Request) -> Response:
        """``GET /v2/models/{name}/ready``."""
        served = registry.find(request.path_params["name"])
        is_ready = served.thread.state == "ready"
        return json_response(Readiness(served.name, is_ready), 200 if is_ready else 503)

    async def show(request: Request) -> Response:
        """``GET /v2/models/{name}``."""
        return json_response(_card(registry.tensors(request.path_params["name"])))

    async def infer(request: Request) -> Response:
        """``POST /v2/models/{name}/infer``."""
        model = registry.tensors(request.path_params["name"])
        _check_media_type(request)
        body = await bodies.read(request)
        record = record_of(request.scope)
        record.model = model.name
        size = _header_size(request, len(body))
        if record.keeps_body:
            record.body = body[:size]
        try:
            asked = decoder.decode(body[:size])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise decode_error(error) from None
        inputs = _arrays(asked.inputs, memoryview(body)[size:])
        _check_tokens(model, inputs)
        outputs = await in_time(request, asyncio.wrap_future(model.thread.submit(partial(_run, inputs))))
        return _answer(model.name, asked, outputs)

    return [
        Route("/v2", server, methods=["GET"]),
        Route("/v2/models/{name:path}/ready", ready, methods=["GET"]),
        Route("/v2/models/{name:path}/infer", infer, methods=["POST"]),
        Route("/v2/models/{name:path}", show, methods=["GET"]),
    ]


def _check_media_type(request: Request) -> None:
    """Refuse what a web page may send elsewhere without asking; the official client names no type.

    Raises:
        ApiError: It is that.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    named = media_type in ("application/json", "application/octet-stream")
    if not named and (media_type or "origin" in request.headers):
        message = "The body must be sent as Content-Type: application/json, or application/octet-stream."
        raise ApiError(415, message, "unsupported_media_type")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Bodies may not be compressed.", "unsupported_encoding")


def _header_size(request: Request, size: int) -> int:
    """Bytes of a body that are JSON: all, or as many as its header says."""
    given = request.headers.get(_HEADER)
    if given is None:
        return size
    if not (given.isascii() and given.isdigit() and len(given) < 16 and int(given) <= size):
        raise invalid(f"'Inference-Header-Content-Length' must be a number of bytes of the body's {size}.", None)
    return int(given)


def _arrays(inputs: Sequence[Input], data: memoryview) -> dict[str, NDArray[Any]]:
    """The tensors that are given.

    Raises:
        ApiError: One is not what it says, or bytes are missing or left over.
    """
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for i, given in enumerate(inputs):
        where = f"inputs[{i}]"
        if given.name in arrays:
            raise invalid(f"'{where}.name' is that of another input.", f"{where}.name")
        size = given.parameters.binary_data_size
        if (size is None) == (given.data is None):
            raise invalid(f"'{where}' must have either data or a binary_data_size.", where)
        dtype = _dtype(given.datatype, f"{where}.datatype")
        if 0 in given.shape:
            raise invalid(f"'{where}.shape' is of a tensor without numbers.", f"{where}.shape")
        if size is None:
            array = _listed(given, dtype, where)
        else:
            wanted = math.prod(given.shape) * dtype.itemsize
            if size != wanted or size > len(data) - at:
                message = (
                    f"has {size} bytes of {len(data) - at} that are left, and its shape and datatype need {wanted}"
                )
                raise invalid(f"'{where}' {message}.", f"{where}.parameters.binary_data_size")
            array = np.frombuffer(data[at : at + size], dtype.newbyteorder("<")).astype(dtype)  # aligned
            if dtype.kind == "b" and array.view(np.uint8).max() > 1:
                raise invalid(f"'{where}' has bytes that are neither 0 nor 1.", where)
            at += size
        arrays[given.name] = array.reshape(given.shape)
    if at < len(data):
        raise invalid(f"The body has {len(data) - at} bytes behind those of its inputs.", "inputs")
    return arrays


def _listed(given: Input, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """A tensor from JSON; numbers must be exactly of its datatype's kind and range."""
    try:
        array = np.array(given.data)
    except (ValueError, OverflowError):
        array = np.array(None)
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "V": "iuf"}[dtype.kind]
    if array.size and array.dtype.kind not in kinds:
        raise invalid(f"'{where}.data' is no list of numbers of datatype {given.datatype}.", f"{where}.data")
    if array.size != math.prod(given.shape) or (array.ndim > 1 and list(array.shape) != given.shape):
        message = f"'{where}.data' has the shape {list(array.shape)}, and 'shape' says {given.shape}."
        raise invalid(message, f"{where}.data")
    if dtype.kind in "iu" and array.size:
        range_ = np.iinfo(dtype)
        if int(array.min()) < range_.min or int(array.max()) > range_.max:
            raise invalid(f"'{where}.data' has numbers outside of {given.datatype}.", f"{where}.data")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        raise invalid(f"'{where}.data' has numbers outside of {given.datatype}.", f"{where}.data")
    return cast


def _dtype(datatype: str, param: str) -> np.dtype[Any]:
    try:
        return np.dtype(_DTYPES[datatype])
    except (KeyError, TypeError):
        known = ", ".join(name for name in _DTYPES if name != "BF16")
        raise invalid(f"'{param}' must be one of {known}.", param) from None


def _check_tokens(model: Tensors, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Bound what one request of a text encoder may compute: its memory grows with the square of a text's length.

    Raises:
        ApiError: A text or all together have too many tokens.
    """
    facts = model.manifest.embedding
    for name, array in inputs.items():
        if facts is None or array.ndim != 2:
            continue
        if array.shape[1] > facts.max_tokens or array.size > _MOST_TOKENS:
            most = f"a text may have {facts.max_tokens} tokens and all together {_MOST_TOKENS}"
            raise invalid(f"The input '{name}' has the shape {list(array.shape)}; {most}.", "inputs")


def _run(inputs: Mapping[str, NDArray[Any]], session: Session) -> dict[str, NDArray[Any]]:
    try:
        return session.run(inputs, next(iter(session.signatures)))
    except AiccError as error:
        raise from_foreseen(error, "inputs") from error


def _answer(name: str, asked: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> Response:
    wanted = asked.outputs or [Wanted(name) for name in outputs]
    told, data = [], []
    for i, each in enumerate(wanted):
        if each.name not in outputs:
            raise invalid(
                f"The model has no output '{each.name[:200]}'. It has: {', '.join(outputs)}.", f"outputs[{i}]"
            )
        array = outputs[each.name]
        datatype, shape = _DATATYPES[array.dtype.name], list(array.shape)
        binary = each.parameters.binary_data
        if binary if binary is not None else asked.parameters.binary_data_output:
            data.append(np.asarray(array, array.dtype.newbyteorder("<")).tobytes())
            told.append(Output(each.name, datatype, shape, parameters=BinarySize(len(data[-1]))))
        else:
            told.append(Output(each.name, datatype, shape, array.ravel().tolist()))
    answer = InferAnswer(name, told, asked.id)
    if not data:
        return json_response(answer)
    head = msgspec.json.encode(answer)
    return Response(b"".join([head, *data]), headers={_HEADER: str(len(head))}, media_type="application/octet-stream")


def _card(model: Tensors) -> ModelCard:
    signature = next(iter(model.manifest.signatures.values()))
    return ModelCard(model.name, _tensors(signature.inputs), _tensors(signature.outputs))


def _tensors(specs: Sequence[TensorSpec]) -> list[TensorCard]:
    return [
        TensorCard(spec.name, _DATATYPES[spec.dtype], [-1 if isinstance(size, str) else size for size in spec.shape])
        for spec in specs
    ]
