"""Files that belong to a model: found only inside its folder, read only up to a size."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from aicc.runtime.errors import IntegrityError

_MAX_TEXT = 512 << 20  # the largest tokenizer.json published has about 40 MB


def contained_file(folder: Path, name: str, where: str) -> Path:
    """The file a model file names, if it lies in the model's folder.

    Args:
        folder: The model's folder.
        name: As written in the model file; posix or Windows separators.
        where: What names it, for the message.

    Raises:
        IntegrityError: The name leads outside the folder (by ``..``, an absolute path or a symbolic
            link), or there is no such file.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    outside = relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0:1] or "\0" in name or not name
    path = folder / relative if not outside else folder
    if outside or not path.resolve().is_relative_to(model_root(folder)):
        raise IntegrityError(
            f"{where} names the file {name!r}, which is outside the model's folder {folder}.",
            "Do not use this model; a model file may only name files beside it.",
        )
    if not path.is_file():
        raise IntegrityError(f"{where} needs the file {name!r}, which is not in {folder}.", "Download the whole model.")
    return path


def model_root(folder: Path) -> Path:
    """The folder links may lead to, links followed: a snapshot of the hub's cache links to the blobs beside it."""
    folder = folder.resolve()
    is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.parents[1] if is_snapshot else folder


def read_text(path: Path) -> str:
    """A text file of bounded size.

    Raises:
        IntegrityError: Too large, or not UTF-8.
    """
    if path.stat().st_size > _MAX_TEXT:
        raise IntegrityError(f"{path} has {path.stat().st_size:,} bytes, too many for what it is.", "It is damaged.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not UTF-8 text.", "Download it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        IntegrityError: Not a JSON object.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not valid JSON ({error}).", "Download it again.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is not a JSON object.", "Download it again.")
    return value


def read_tokenizer(folder: Path) -> str | None:
    """The text of the folder's ``tokenizer.json`` after checking that it loads; None without one.

    Raises:
        IntegrityError: The file is no tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    text = read_text(path)
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers' Rust errors are plain Exceptions
        raise IntegrityError(f"{path} is not a tokenizer: {error}.", "Download it again.") from error
    return text
