"""Messages of the Open Inference Protocol over REST."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aicc.runtime.server.open_inference.tensors import MOST_TENSORS

Size = Annotated[int, Meta(ge=0, le=2**40)]


class InputParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of an input: how many bytes behind the JSON are its."""

    binary_data_size: Size | None = None


class Input(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A tensor that is given. ``data`` is flat or nested, in row-major order, and read when the shape is known."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"null")
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

    inputs: Annotated[list[Input], Meta(max_length=MOST_TENSORS)]
    outputs: Annotated[list[Wanted], Meta(max_length=MOST_TENSORS)] | None = None
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
    data: msgspec.Raw | UnsetType = UNSET
    parameters: BinarySize | UnsetType = UNSET


class InferAnswer(msgspec.Struct, frozen=True):
    """Answer of ``POST /v2/models/{name}/infer``."""

    model_name: str
    model_version: str
    outputs: list[Output]
    id: str | UnsetType = UNSET


class TensorCard(msgspec.Struct, frozen=True):
    """An input or output; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelCard(msgspec.Struct, frozen=True):
    """Answer of ``GET /v2/models/{name}``: of one signature, and the names of all."""

    name: str
    versions: list[str]
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
