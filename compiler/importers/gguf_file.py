"""Reads a GGUF file's header, believing none of it.

Layout (ggml's gguf.md): magic, version, counts, key-value metadata, tensor descriptions, padding,
tensor data. Everything read here is checked against the size of the file before it is used;
tensor data is mapped and not touched.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from aicc.runtime.errors import IntegrityError, UnsupportedError

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 1024  # bytes; ggml itself stops at 64
_MAX_NESTING = 2  # arrays in arrays
_NUMBERS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9
_FORMATS = {int(kind): kind for kind in GGML_QUANT_SIZES}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: As in the file.
        type: Its ggml number format.
        shape: Row-major (the file has it reversed).
        data: uint8 view of the mapped bytes.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray

    def blocks(self) -> np.ndarray:
        """The bytes as ``[rows, bytes of a row]``; a row is a whole number of blocks."""
        return self.data.reshape(math.prod(self.shape[:-1]), -1)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header.

    Attributes:
        path: The file.
        metadata: Scalars and strings as Python values; arrays of numbers as numpy arrays; arrays of
            strings as lists.
        tensors: By name, in file order.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header.

    Raises:
        IntegrityError: Truncated, or it contradicts itself; the message names the key or tensor.
        UnsupportedError: A version or number format that is not known.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise IntegrityError(f"{path} is empty.", "Download or copy it again.") from error
    cursor = _Cursor(path, data)
    if cursor.take(4, "magic") != b"GGUF":
        raise IntegrityError(f"{path} is not a GGUF file.", "Give a GGUF file.")
    version = cursor.number("<I", "version")
    if version not in _VERSIONS:
        raise UnsupportedError(
            f"{path} is GGUF version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read.",
            "Convert the model again with a current llama.cpp (big-endian files are not read).",
        )
    tensor_count, key_count = cursor.number("<Q", "tensor count"), cursor.number("<Q", "key count")
    metadata: dict[str, Any] = {}
    for index in range(cursor.bounded(key_count, 13, "keys")):
        key = cursor.text(f"key {index}", _MAX_NAME)
        if key in metadata:
            raise IntegrityError(f"{path} has the key {key!r} twice.", "Convert the model again.")
        metadata[key] = cursor.value(cursor.number("<I", key), key)
        _check_type(key, metadata[key], path)
    described = [_tensor_description(cursor, i) for i in range(cursor.bounded(tensor_count, 24, "tensors"))]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise IntegrityError(f"{path}: general.alignment is {alignment!r}.", "Convert the model again.")
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, _map_tensors(path, data, start, described))


# Keys whose values are not plain numbers, by their ends; numbers are checked where they are used.
_TEXTS = ("general.architecture", "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre", ".rope.scaling.type")
_TEXTS += ("tokenizer.chat_template",)
_TEXT_LISTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
_NUMBER_LISTS = {"tokenizer.ggml.token_type": "iu", "tokenizer.ggml.scores": "f"}  # numpy kinds


def _check_type(key: str, value: Any, path: Path) -> None:
    """Refuse a known key that holds another kind of value than it is for."""
    right = True
    if key.endswith(_TEXTS):
        right = isinstance(value, str)
    elif key in _TEXT_LISTS:
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif key in _NUMBER_LISTS:
        right = isinstance(value, np.ndarray) and value.dtype.kind in _NUMBER_LISTS[key]
    if not right:
        raise IntegrityError(
            f"{path}: {key} holds {type(value).__name__} values it cannot have.", "The file is damaged."
        )


class _Cursor:
    """Reads forward through the header; running past the end is an IntegrityError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.position:
            raise IntegrityError(
                f"{self.path} ends inside {what} (byte {self.position:,} of {len(self.data):,}).",
                "The file is truncated or damaged; download or copy it again.",
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, layout: str, what: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def bounded(self, count: int, item_bytes: int, what: str) -> int:
        """A count of items of at least so many bytes each, which must fit in what is left."""
        if count * item_bytes > len(self.data) - self.position:
            raise IntegrityError(
                f"{self.path} claims {count:,} {what}, more than it has room for.",
                "The file is truncated or damaged; download or copy it again.",
            )
        return count

    def text(self, what: str, limit: int | None = None) -> str:
        size = self.number("<Q", what)
        if limit is not None and size > limit:
            raise IntegrityError(f"{self.path}: the name of {what} has {size:,} bytes.", "The file is damaged.")
        # A few published vocabularies hold pieces of UTF-8; llama.cpp keeps the bytes as they are.
        # As names they would be no use, and damage.
        try:
            return self.take(size, what).decode("utf-8", errors="replace" if limit is None else "strict")
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{self.path}: the name of {what} is not text.", "The file is damaged.") from error

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            dtype = _NUMBERS[kind]
            return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise IntegrityError(
                f"{self.path}: the key {key!r} has the unknown value type {kind}.", "The file is damaged."
            )
        item, count = self.number("<I", key), self.number("<Q", key)
        if item in _NUMBERS:
            dtype = _NUMBERS[item]
            return np.frombuffer(
                self.take(self.bounded(count, dtype.itemsize, f"values in {key!r}") * dtype.itemsize, key), dtype
            )
        smallest = 8 if item == _STRING else 12
        return [self.value(item, key, depth + 1) for _ in range(self.bounded(count, smallest, f"values in {key!r}"))]


def _tensor_description(cursor: _Cursor, index: int) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    """Name, number format, row-major shape and data offset of the next tensor."""
    name = cursor.text(f"tensor {index}", _MAX_NAME)
    rank = cursor.number("<I", name)
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise IntegrityError(f"{cursor.path}: tensor {name!r} has {rank} dimensions.", "The file is damaged.")
    shape = tuple(cursor.number("<Q", name) for _ in range(rank))[::-1]
    kind, offset = cursor.number("<I", name), cursor.number("<Q", name)
    if kind not in _FORMATS:
        raise UnsupportedError(
            f"{cursor.path}: tensor {name!r} has the unknown number format {kind}.",
            "Quantise the model in another format.",
        )
    if 0 in shape:
        raise IntegrityError(f"{cursor.path}: tensor {name!r} has the shape {list(shape)}.", "The file is damaged.")
    return name, _FORMATS[kind], shape, offset


def _map_tensors(path: Path, data: mmap.mmap, start: int, described: list) -> dict[str, GgufTensor]:
    """Views of the mapped data; each tensor must lie inside the file and on no other."""
    tensors: dict[str, GgufTensor] = {}
    spans = []
    for name, kind, shape, offset in described:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise IntegrityError(
                f"{path}: rows of tensor {name!r} have {shape[-1]:,} values, not whole {kind.name} blocks of {block}.",
                "The file is damaged.",
            )
        size = math.prod(shape) // block * block_bytes
        if name in tensors:
            raise IntegrityError(f"{path} has the tensor {name!r} twice.", "The file is damaged.")
        if start + offset + size > len(data):
            raise IntegrityError(
                f"{path}: tensor {name!r} {list(shape)} ends at byte {start + offset + size:,} of {len(data):,}.",
                "The file is truncated or damaged; download or copy it again.",
            )
        tensors[name] = GgufTensor(name, kind, shape, np.frombuffer(data, np.uint8, size, start + offset))
        spans.append((offset, offset + size, name))
    spans.sort()
    for (_, end, first), (begin, _, second) in pairwise(spans):
        if begin < end:
            raise IntegrityError(f"{path}: the tensors {first!r} and {second!r} overlap.", "The file is damaged.")
    return tensors
