"""What the Open Inference Protocol says of tensors, whatever carries it: names, shapes, bytes, and the run itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature, TensorSpec
from aicc.runtime.errors import AiccError
from aicc.runtime.server.errors import ApiError, from_foreseen, invalid
from aicc.runtime.server.registry import Registry, Tensors
from aicc.runtime.session import Session

_DTYPES = {
    "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
MOST_TENSORS = 1000
_MOST_AXES = 32
_MOST_SIZE = 2**40
_MOST_TOKENS = 4096  # of the texts of one request, padding included
_INLINE = 1 << 16  # bytes; what takes well under a millisecond is not worth another thread's turn
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One signature of a model, which is what the protocol calls one of its versions.

    Attributes:
        model: Whose it is.
        version: Its name.
    """

    model: Tensors
    version: str

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self.model.manifest.signatures[self.version]

    async def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for some inputs, when it is their turn.

        Raises:
            ApiError: They do not fit the signature; the model is not there or has too much to do.
        """
        _check_tokens(self.model, inputs)
        return await asyncio.wrap_future(self.model.thread.submit(partial(_run, self.version, inputs)))

    async def apart(self, size: int, work: Callable[[], T]) -> T:
        """Do what takes long for a message of many bytes off the event loop, on the model's thread for text."""
        if size <= _INLINE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.model.text, work)


def entry(registry: Registry, name: str, version: str = "") -> Entry:
    """The signature that is asked for; without a version the first.

    Raises:
        ApiError: There is no such model of tensors, or it has no such signature.
    """
    model = registry.tensors(name)
    signatures = model.manifest.signatures
    if version and version not in signatures:
        message = f"The model '{name}' has no version '{version[:200]}'. It has: {', '.join(signatures)}."
        raise ApiError(404, message, "model_not_found", "version")
    return Entry(model, version or next(iter(signatures)))


@dataclass(frozen=True, slots=True)
class Given:
    """What a request says of one of its inputs.

    Attributes:
        where: Where in the request it stands.
        name: Of the input.
        datatype: As the protocol calls it.
        dtype: As numpy does.
        shape: Sizes, all of them positive; nothing is allocated for it yet.
    """

    where: str
    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it must have."""
        return math.prod(self.shape)

    def from_bytes(self, data: bytes | memoryview, param: str) -> NDArray[Any]:
        """The tensor from its little-endian bytes.

        Raises:
            ApiError: There are more or fewer than it needs, or one is no truth value.
        """
        wanted = self.count * self.dtype.itemsize
        if len(data) != wanted:
            raise invalid(f"'{self.where}' has {len(data)} bytes, and its shape and datatype need {wanted}.", param)
        array = np.frombuffer(data, self.dtype.newbyteorder("<")).astype(self.dtype)  # aligned
        if self.dtype.kind == "b" and array.view(np.uint8).max() > 1:
            raise invalid(f"'{self.where}' has bytes that are neither 0 nor 1.", self.where)
        return array.reshape(self.shape)


def given(index: int, others: Collection[str], name: str, datatype: str, shape: Sequence[int]) -> Given:
    """What is said of an input, checked by itself.

    Args:
        index: Its place among the inputs.
        others: Names of those before it.
        name: As sent, and so are ``datatype`` and ``shape``.
        datatype: As the protocol calls it.
        shape: Sizes.

    Raises:
        ApiError: The name is taken, the datatype is none, or there is no tensor of such a shape.
    """
    where = f"inputs[{index}]"
    if name in others:
        raise invalid(f"'{where}.name' is that of another input.", f"{where}.name")
    try:
        dtype = np.dtype(_DTYPES[datatype])
    except (KeyError, TypeError):
        known = ", ".join(name for name in _DTYPES if name != "BF16")
        raise invalid(f"'{where}.datatype' must be one of {known}.", f"{where}.datatype") from None
    if len(shape) > _MOST_AXES or not all(1 <= size <= _MOST_SIZE for size in shape):
        message = f"'{where}.shape' must have at most {_MOST_AXES} sizes from 1 to {_MOST_SIZE}."
        raise invalid(message, f"{where}.shape")
    return Given(where, name, datatype, dtype, tuple(shape))


def check_outputs(names: Sequence[str], outputs: Mapping[str, NDArray[Any]]) -> None:
    """Whether the outputs that are asked for are there.

    Raises:
        ApiError: The model has not given one of them, or it is asked for twice.
    """
    for i, name in enumerate(names):
        if name not in outputs:
            message = f"The model has no output '{name[:200]}'. It has: {', '.join(outputs)}."
            raise invalid(message, f"outputs[{i}]")
    if len(set(names)) < len(names):
        raise invalid("'outputs' names one output twice.", "outputs")


def any_size(spec: TensorSpec) -> list[int]:
    """A tensor's shape as the protocol writes it: -1 is a dimension of any size."""
    return [-1 if isinstance(size, str) else size for size in spec.shape]


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


def _run(signature: str, inputs: Mapping[str, NDArray[Any]], session: Session) -> dict[str, NDArray[Any]]:
    try:
        return session.run(inputs, signature)
    except AiccError as error:
        raise from_foreseen(error, "inputs") from error
