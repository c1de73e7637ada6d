"""Reads safetensors headers, believing none of them, and maps the tensors.

Layout: 8 bytes of header length (little-endian), a JSON header, then the data. The format asks
that tensors cover the data exactly, without holes or overlaps; that is checked here.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from aicc.compiler.importers.files import contained_file, read_json
from aicc.compiler.importers.lazy import LazyWeight
from aicc.runtime.errors import IntegrityError

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files in name order: those of the index, or the only one.

    Raises:
        IntegrityError: The index names files outside the folder or that are not there.
    """
    index = folder / _INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        chosen = folder / _SINGLE
        if len(files) != 1 and chosen not in files:
            raise IntegrityError(
                f"{folder} has {len(files)} safetensors files and no {_INDEX} to say which belong together.",
                "Download the whole model.",
            )
        return [chosen] if chosen in files else files
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise IntegrityError(f"{index} has no weight_map from tensors to files.", "Download it again.")
    return [contained_file(folder, name, str(index)) for name in sorted(set(shards.values()))]


def read_weights(files: list[Path]) -> dict[str, LazyWeight]:
    """All tensors of several files by name, lazy.

    Raises:
        IntegrityError: A header lies; the file and tensor are named.
    """
    weights: dict[str, LazyWeight] = {}
    for path in files:
        for name, weight in _read_file(path).items():
            if name in weights:
                raise IntegrityError(
                    f"{path}: the tensor {name!r} is in another file too.", "Download the model again."
                )
            weights[name] = weight
    return weights


def _read_file(path: Path) -> dict[str, LazyWeight]:
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise IntegrityError(
                f"{path} claims a header of {length:,} bytes and has {size:,} in all.",
                "The file is truncated or damaged; download it again.",
            )
        header = _parse(file.read(length), path)
        header.pop("__metadata__", None)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + length
    described = [_describe(name, entry, path) for name, entry in header.items()]
    _check_cover(described, size - start, path)
    return {name: _lazy(data, start + begin, dtype, shape) for begin, _, name, dtype, shape in described}


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: the header is not valid JSON ({error}).", "Download it again.") from error
    if not isinstance(header, dict):
        raise IntegrityError(f"{path}: the header is not a JSON object.", "Download it again.")
    return header


def _describe(name: str, entry: Any, path: Path) -> tuple[int, int, str, torch.dtype, tuple[int, ...]]:
    """Begin and end of the data, name, dtype and shape of one tensor."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = _DTYPES.get(str(entry.get("dtype"))), entry.get("shape"), entry.get("data_offsets")
    if dtype is None:
        raise IntegrityError(f"{path}: tensor {name!r} has the number format {entry.get('dtype')!r}, not known here.")
    if not _whole_numbers(shape) or not _whole_numbers(span) or len(span) != 2:
        raise IntegrityError(f"{path}: tensor {name!r} has shape {shape!r} and offsets {span!r}.", "Download it again.")
    begin, end = span
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise IntegrityError(
            f"{path}: tensor {name!r} {shape} needs {needed:,} bytes and its offsets give {end - begin:,}.",
            "The header is damaged; download the file again.",
        )
    return begin, end, name, dtype, tuple(shape)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(described: list[tuple[int, int, str, torch.dtype, tuple[int, ...]]], size: int, path: Path) -> None:
    """Tensors must lie one after the other, from the first to the last byte of the data."""
    ordered = sorted(described, key=lambda tensor: tensor[:2])
    ends = [(0, 0, "the start of the data"), *ordered, (size, size, "the end of the file")]
    for before, after in pairwise(ends):
        if before[1] != after[0]:
            raise IntegrityError(
                f"{path}: {before[2]!r} ends at byte {before[1]:,} and {after[2]!r} begins at {after[0]:,}.",
                "The file is truncated or its header is damaged; download it again.",
            )


def _lazy(data: mmap.mmap, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> LazyWeight:
    def load() -> torch.Tensor:
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():  # torch has no read-only tensors and says so; nothing here writes to it
            warnings.simplefilter("ignore")
            return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=offset).reshape(shape)

    return LazyWeight.from_file(shape, dtype, load)
