"""The methods of the Open Inference Protocol over gRPC: from a message to its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from aicc.runtime.artifact import TensorSpec
from aicc.runtime.server.answering import before_end
from aicc.runtime.server.errors import invalid, unimplemented
from aicc.runtime.server.health import readiness
from aicc.runtime.server.open_inference import open_inference_pb2 as pb
from aicc.runtime.server.open_inference.tensors import (
    DATATYPES,
    MOST_TENSORS,
    Entry,
    Given,
    any_size,
    check_outputs,
    entry,
    given,
)
from aicc.runtime.server.recording import RequestRecord

if TYPE_CHECKING:
    from aicc.runtime.server.app import Service

SERVICE = "inference.GRPCInferenceService"
_PIECE = 1 << 16  # numbers that are looked at in one call, which keeps other threads waiting
_NAMED = 1000  # bytes of unknown fields; the library makes a Python object of each before the first can be named
_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
M = TypeVar("M", bound=Message)


class Methods:
    """All of them, over what a server serves."""

    def __init__(self, service: Service) -> None:
        self._registry = service.registry
        self._drain = service.drain
        self._answers: Mapping[str, Callable[[bytes], Message]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
        }
        self.names = frozenset((*self._answers, "ModelInfer"))

    async def answer(self, name: str, message: bytes, record: RequestRecord) -> bytes:
        """What one of them answers to a message; its record learns which model it is for.

        Raises:
            ApiError: The message cannot be answered.
        """
        if name == "ModelInfer":
            return await before_end(record, self._infer(message, record))
        answer: bytes = self._answers[name](message).SerializeToString()
        return answer

    def _server_live(self, message: bytes) -> Message:
        _parsed(pb.ServerLiveRequest, message)
        return pb.ServerLiveResponse(live=readiness(self._registry, self._drain).status != "failed")

    def _server_ready(self, message: bytes) -> Message:
        _parsed(pb.ServerReadyRequest, message)
        return pb.ServerReadyResponse(ready=readiness(self._registry, self._drain).status == "ready")

    def _server_metadata(self, message: bytes) -> Message:
        _parsed(pb.ServerMetadataRequest, message)
        return pb.ServerMetadataResponse(name="aicc", version=metadata.version("aicc"))

    def _model_ready(self, message: bytes) -> Message:
        asked = _parsed(pb.ModelReadyRequest, message)
        served = self._registry.find(asked.name)
        if asked.version:
            entry(self._registry, asked.name, asked.version)
        return pb.ModelReadyResponse(ready=served.thread.state == "ready")

    def _model_metadata(self, message: bytes) -> Message:
        asked = _parsed(pb.ModelMetadataRequest, message)
        shown = entry(self._registry, asked.name, asked.version)
        return pb.ModelMetadataResponse(
            name=shown.model.name,
            versions=list(shown.model.manifest.signatures),
            platform="aicc",
            inputs=_cards(shown.signature.inputs),
            outputs=_cards(shown.signature.outputs),
        )

    async def _infer(self, message: bytes, record: RequestRecord) -> bytes:
        asked = _parsed(pb.ModelInferRequest, message)
        asked_of = entry(self._registry, asked.model_name, asked.model_version)
        record.model = asked_of.model.name
        if record.keeps_body:
            record.body = _without_raw(asked)
        inputs = await asked_of.apart(len(message), partial(_arrays, asked))
        outputs = await asked_of.run(inputs)
        answer_size = sum(array.nbytes for array in outputs.values())
        return await asked_of.apart(answer_size, partial(_answer, asked_of, asked, outputs))


def _parsed(kind: type[M], message: bytes) -> M:
    """A message, in a few times as long as copying it takes, whatever it has many of.

    Raises:
        ApiError: It is none, has too many tensors, or fields that the protocol has not.
    """
    try:
        parsed: M = kind.FromString(message)
    except DecodeError:
        raise invalid("The message is none of the protocol's, or compressed.", None, "invalid_message") from None
    if isinstance(parsed, pb.ModelInferRequest) and max(len(parsed.inputs), len(parsed.outputs)) > MOST_TENSORS:
        raise invalid(f"A request may have {MOST_TENSORS} inputs and name as many outputs.", "inputs")
    size = parsed.ByteSize()
    parsed.DiscardUnknownFields()
    if unknown := size - parsed.ByteSize():
        where = _unknown(kind.FromString(message), unknown)
        raise invalid(f"{where}, which this server does not know.", None, "unknown_parameter")
    return parsed


def _unknown(parsed: Message, size: int) -> str:
    """Which field of a message is none of the protocol's; unknown fields are of so many bytes in all."""
    parts: list[Message] = [parsed]
    if isinstance(parsed, pb.ModelInferRequest):
        parts += [*parsed.inputs, *(part.contents for part in parsed.inputs), *parsed.outputs]
    for part in parts if size <= _NAMED else ():
        for field in UnknownFieldSet(part):
            return f"{part.DESCRIPTOR.name} has a field of number {field.field_number}"
    return f"The message has {size} bytes of fields"


def _without_raw(asked: pb.ModelInferRequest) -> bytes:
    """A request for the log: as JSON, without the tensors that are bytes."""
    copy = pb.ModelInferRequest()
    copy.CopyFrom(asked)
    copy.ClearField("raw_input_contents")
    return str(MessageToJson(copy, preserving_proto_field_name=True, indent=None)).encode()


def _refuse_parameters(parameters: Mapping[str, pb.InferParameter], where: str) -> None:
    for name in parameters:
        raise unimplemented(f"{where}parameters.{name[:100]}")


def _arrays(asked: pb.ModelInferRequest) -> dict[str, NDArray[Any]]:
    """The tensors that are given.

    Raises:
        ApiError: One is not what it says, or something is asked that this server has not.
    """
    _refuse_parameters(asked.parameters, "")
    for i, output in enumerate(asked.outputs):
        _refuse_parameters(output.parameters, f"outputs[{i}].")
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        message = f"'raw_input_contents' has {len(raw)} tensors for {len(asked.inputs)} inputs."
        raise invalid(message, "raw_input_contents")
    arrays: dict[str, NDArray[Any]] = {}
    for i, said in enumerate(asked.inputs):
        tensor = given(i, arrays, said.name, said.datatype, said.shape)
        _refuse_parameters(said.parameters, f"{tensor.where}.")
        if raw and said.HasField("contents"):
            raise invalid(f"'{tensor.where}' has contents beside raw_input_contents.", f"{tensor.where}.contents")
        param = f"raw_input_contents[{i}]"
        arrays[said.name] = tensor.from_bytes(raw[i], param) if raw else _typed(tensor, said.contents)
    return arrays


def _typed(tensor: Given, contents: pb.InferTensorContents) -> NDArray[Any]:
    """A tensor from the field of its datatype."""
    param = f"{tensor.where}.contents"
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise invalid(f"'{param}' has no field for {tensor.datatype}; send raw_input_contents.", param)
    numbers = getattr(contents, field)
    if len(numbers) != tensor.count or [kind.name for kind, _ in contents.ListFields()] != [field]:
        raise invalid(f"'{param}' must have {tensor.count} numbers in {field}, and nothing else.", param)
    array = np.empty(tensor.count, tensor.dtype)
    try:
        for at in range(0, tensor.count, _PIECE):
            array[at : at + _PIECE] = numbers[at : at + _PIECE]
    except OverflowError:
        raise invalid(f"'{param}' has numbers outside of {tensor.datatype}.", param) from None
    return array.reshape(tensor.shape)


def _answer(asked_of: Entry, asked: pb.ModelInferRequest, outputs: Mapping[str, NDArray[Any]]) -> bytes:
    """Outputs as inputs are: as numbers or as bytes, which all are if there is one whose datatype has no field."""
    names = [wanted.name for wanted in asked.outputs]
    check_outputs(names, outputs)
    arrays = {name: outputs[name] for name in names or outputs}
    raw = bool(asked.raw_input_contents) or any(DATATYPES[a.dtype.name] not in _FIELDS for a in arrays.values())
    answer = pb.ModelInferResponse(model_name=asked_of.model.name, model_version=asked_of.version, id=asked.id)
    for name, array in arrays.items():
        datatype = DATATYPES[array.dtype.name]
        told = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(np.asarray(array, array.dtype.newbyteorder("<")).tobytes())
            continue
        numbers, flat = getattr(told.contents, _FIELDS[datatype]), array.ravel()
        for at in range(0, flat.size, _PIECE):
            numbers.extend(flat[at : at + _PIECE].tolist())
    message: bytes = answer.SerializeToString()
    return message


def _cards(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=DATATYPES[spec.dtype], shape=any_size(spec))
        for spec in specs
    ]
