"""Numbers of tensors in JSON, a piece at a time: one call of the JSON library keeps every other thread waiting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, reduce
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 16  # bytes of JSON, or numbers of a tensor: about a millisecond
_ROWS = msgspec.json.Decoder(list[msgspec.Raw])
_KINDS: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float, "V": float}  # V is bfloat16


def read(json: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor from a list of numbers, flat or nested as its shape is.

    Args:
        json: One value, of valid JSON.
        dtype: What the numbers must fit exactly: their kind, and their range.
        shape: Positive sizes. Nothing is allocated unless the text is long enough for them.

    Returns:
        An array of that dtype and shape.

    Raises:
        ValueError: The value has other numbers, or something else.
    """
    count = math.prod(shape)
    if len(json) < 2 * count + 1:  # a digit each, what stands between them, and the brackets
        raise _misfit()
    flat = json[1:].lstrip()[:1] != b"["
    array = np.empty((count,) if flat else shape, dtype)
    try:
        with np.errstate(over="ignore"):
            _fill(array, json)
    except (msgspec.MsgspecError, OverflowError, ValueError) as error:
        raise _misfit() from error
    if dtype.kind in "fV" and not np.isfinite(array).all():
        raise _misfit()
    return array.reshape(shape)


def write(array: NDArray[Any]) -> msgspec.Raw:
    """A tensor's numbers as a flat list."""
    flat = array.ravel()
    pieces = (msgspec.json.encode(flat[at : at + _PIECE].tolist()) for at in range(0, flat.size, _PIECE))
    return msgspec.Raw(b"[" + b",".join(piece[1:-1] for piece in pieces) + b"]")


def _fill(array: NDArray[Any], json: bytes) -> None:
    _check(json[:1] == b"[")  # cut into pieces, a text of digits and commas would be a list too
    if len(json) <= _PIECE:
        numbers = np.array(_decoder(array.dtype.kind, array.ndim).decode(json), array.dtype)
        _check(numbers.shape == array.shape)
        array[...] = numbers
    elif array.ndim > 1:
        rows = _ROWS.decode(json)
        _check(len(rows) == len(array))
        for row, text in zip(array, rows, strict=True):
            _fill(row, bytes(text))
    else:
        at = 0
        for piece in _pieces(json):
            numbers = np.array(_decoder(array.dtype.kind, 1).decode(piece), array.dtype)
            _check(at + numbers.size <= array.size)
            array[at : at + numbers.size] = numbers
            at += numbers.size
        _check(at == array.size)


def _pieces(json: bytes) -> Iterator[bytes]:
    """A flat list as several; cut at commas, so that one of anything but numbers gives no list somewhere."""
    start, end = 1, len(json) - 1
    while start < end:
        comma = json.find(b",", start + _PIECE, end)
        stop = end if comma < 0 else comma
        yield b"[" + json[start:stop] + b"]"
        start = stop + 1


@cache
def _decoder(kind: str, axes: int) -> msgspec.json.Decoder[Any]:
    """Reads lists nested so deeply, of one kind of number."""
    return msgspec.json.Decoder(reduce(lambda inner, _: list[inner], range(axes), _KINDS[kind]))  # type: ignore[valid-type]


def _check(holds: bool) -> None:
    if not holds:
        raise _misfit()


def _misfit() -> ValueError:
    return ValueError("the numbers do not fit the dtype and the shape")
