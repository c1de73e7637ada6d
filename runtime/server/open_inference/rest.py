"""The Open Inference Protocol over REST: messages as JSON, tensors in it or as bytes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.artifact import TensorSpec
from aicc.runtime.server.answering import in_time
from aicc.runtime.server.bodies import BodyReader, json_response, media_type
from aicc.runtime.server.errors import ApiError, decode_error, invalid
from aicc.runtime.server.open_inference import numbers
from aicc.runtime.server.open_inference.schema import (
    BinarySize,
    InferAnswer,
    InferRequest,
    Input,
    ModelCard,
    Output,
    Readiness,
    ServerCard,
    TensorCard,
    Wanted,
)
from aicc.runtime.server.open_inference.tensors import DATATYPES, Entry, any_size, check_outputs, entry, given
from aicc.runtime.server.recording import record_of
from aicc.runtime.server.registry import Registry

_HEADER = "inference-header-content-length"
_DECODER = msgspec.json.Decoder(InferRequest)


def routes(registry: Registry, bodies: BodyReader) -> list[Route]:
    """Its endpoints over some models of tensors; health is with the server's own."""

    async def server(request: Request) -> Response:
        """``GET /v2``."""
        return json_response(ServerCard(metadata.version("aicc")))

    async def ready(request: Request) -> Response:
        """``GET /v2/models/{name}/ready``."""
        served = registry.find(request.path_params["name"])
        if "version" in request.path_params:
            entry(registry, **request.path_params)
        is_ready = served.thread.state == "ready"
        return json_response(Readiness(served.name, is_ready), 200 if is_ready else 503)

    async def show(request: Request) -> Response:
        """``GET /v2/models/{name}``."""
        return json_response(_card(entry(registry, **request.path_params)))

    async def infer(request: Request) -> Response:
        """``POST /v2/models/{name}/infer``."""
        asked_of = entry(registry, **request.path_params)
        _check_media_type(request)
        body = await bodies.read(request)
        record = record_of(request.scope)
        record.model = asked_of.model.name
        size = _header_size(request, len(body))
        if record.keeps_body:
            record.body = body[:size]
        return await in_time(request, _infer(asked_of, body, size))

    def routes_of(path: str) -> list[Route]:
        return [
            Route(f"{path}/ready", ready, methods=["GET"]),
            Route(f"{path}/infer", infer, methods=["POST"]),
            Route(path, show, methods=["GET"]),
        ]

    return [
        Route("/v2", server, methods=["GET"]),
        *routes_of("/v2/models/{name:path}/versions/{version}"),
        *routes_of("/v2/models/{name:path}"),
    ]


async def _infer(asked_of: Entry, body: bytes, size: int) -> Response:
    """From a body, of which so many bytes are JSON, to the answer."""
    asked, inputs = await asked_of.apart(len(body), partial(_parse, body, size))
    outputs = await asked_of.run(inputs)
    answer_size = sum(array.nbytes for array in outputs.values())
    return await asked_of.apart(answer_size, partial(_answer, asked_of, asked, outputs))


def _check_media_type(request: Request) -> None:
    """Refuse what a web page may send elsewhere without asking; the official client names no type.

    Raises:
        ApiError: It is that.
    """
    sent_as = media_type(request)
    named = sent_as in ("application/json", "application/octet-stream")
    if not named and (sent_as or "origin" in request.headers):
        message = "The body must be sent as Content-Type: application/json, or application/octet-stream."
        raise ApiError(415, message, "unsupported_media_type")


def _header_size(request: Request, size: int) -> int:
    """Bytes of a body that are JSON: all, or as many as its header says."""
    declared = request.headers.get(_HEADER)
    if declared is None:
        return size
    if not (declared.isascii() and declared.isdigit() and len(declared) < 16 and int(declared) <= size):
        raise invalid(f"'Inference-Header-Content-Length' must be a number of bytes of the body's {size}.", None)
    return int(declared)


def _parse(body: bytes, size: int) -> tuple[InferRequest, dict[str, NDArray[Any]]]:
    """The message that is the first bytes of a body, and the tensors it has.

    Raises:
        ApiError: It is none; the field at fault is named.
    """
    try:
        asked = _DECODER.decode(memoryview(body)[:size])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise decode_error(error) from None
    return asked, _arrays(asked.inputs, memoryview(body)[size:])


def _arrays(inputs: Sequence[Input], data: memoryview) -> dict[str, NDArray[Any]]:
    """The tensors that are given.

    Raises:
        ApiError: One is not what it says, or bytes are missing or left over.
    """
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for i, said in enumerate(inputs):
        tensor = given(i, arrays, said.name, said.datatype, said.shape)
        size, json = said.parameters.binary_data_size, bytes(said.data)
        if (size is None) == (json == b"null"):
            raise invalid(f"'{tensor.where}' must have either data or a binary_data_size.", tensor.where)
        if size is not None:
            if size > len(data) - at:
                message = f"'{tensor.where}' has {size} bytes of {len(data) - at} that are left."
                raise invalid(message, f"{tensor.where}.parameters.binary_data_size")
            arrays[said.name] = tensor.from_bytes(data[at : at + size], f"{tensor.where}.parameters.binary_data_size")
            at += size
            continue
        try:
            arrays[said.name] = numbers.read(json, tensor.dtype, tensor.shape)
        except ValueError:
            message = f"is no list of {tensor.count} numbers of datatype {said.datatype}, or nested otherwise than its"
            raise invalid(f"'{tensor.where}.data' {message} shape.", f"{tensor.where}.data") from None
    if at < len(data):
        raise invalid(f"The body has {len(data) - at} bytes behind those of its inputs.", "inputs")
    return arrays


def _answer(asked_of: Entry, asked: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> Response:
    wanted = asked.outputs or [Wanted(name) for name in outputs]
    check_outputs([each.name for each in wanted], outputs)
    told, data = [], []
    for each in wanted:
        array = outputs[each.name]
        datatype, shape = DATATYPES[array.dtype.name], list(array.shape)
        binary = each.parameters.binary_data
        if binary if binary is not None else asked.parameters.binary_data_output:
            data.append(np.asarray(array, array.dtype.newbyteorder("<")).tobytes())
            told.append(Output(each.name, datatype, shape, parameters=BinarySize(len(data[-1]))))
        else:
            told.append(Output(each.name, datatype, shape, numbers.write(array)))
    answer = InferAnswer(asked_of.model.name, asked_of.version, told, asked.id)
    if not data:
        return json_response(answer)
    head = msgspec.json.encode(answer)
    return Response(b"".join([head, *data]), headers={_HEADER: str(len(head))}, media_type="application/octet-stream")


def _card(shown: Entry) -> ModelCard:
    signature = shown.signature
    versions = list(shown.model.manifest.signatures)
    return ModelCard(shown.model.name, versions, _tensors(signature.inputs), _tensors(signature.outputs))


def _tensors(specs: Sequence[TensorSpec]) -> list[TensorCard]:
    return [TensorCard(spec.name, DATATYPES[spec.dtype], any_size(spec)) for spec in specs]
