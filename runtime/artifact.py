"""The artifact: one directory, ``model.aicc/``, and the only definition of its format.

Both stages use this module and :mod:`aicc.runtime.manifest`: the compiler writes what is described
here, the runtime reads it; ``docs/artifact-format.md`` explains it for people. Nothing in an
artifact is trusted: sizes, paths and values are checked when it is opened, hashes by
:meth:`Artifact.verify`, and whatever does not fit is an :class:`~aicc.runtime.errors.AiccError`
that names the file and the field.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from aicc.runtime.errors import AiccError, IntegrityError, MismatchError, UsageError
from aicc.runtime.manifest import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    MANIFEST_NAME,
    TIMINGS_PATH,
    CompileTimings,
    EmbeddingFacts,
    FileEntry,
    Format,
    LlmFacts,
    Manifest,
    MemoryFacts,
    Quality,
    Signature,
    SourceInfo,
    TensorSpec,
    Variant,
    damaged,
    decode_json,
    decode_manifest,
    encode_manifest,
)

__all__ = [
    "CHAT_TEMPLATE_PATH",
    "FORMAT_MAJOR",
    "FORMAT_MINOR",
    "GRAPH_PATH",
    "MANIFEST_NAME",
    "PAGE",
    "REPORT_PATH",
    "TENSOR_ALIGNMENT",
    "TIMINGS_PATH",
    "TOKENIZER_CONFIG_PATH",
    "TOKENIZER_PATH",
    "WEIGHTS_PATH",
    "Artifact",
    "CompileTimings",
    "EmbeddingFacts",
    "FileEntry",
    "Format",
    "LlmFacts",
    "Manifest",
    "MemoryFacts",
    "Quality",
    "Signature",
    "SourceInfo",
    "TensorSpec",
    "Variant",
    "decode_manifest",
    "encode_manifest",
]

PAGE = 4096  # weights files are padded to this, so that each can be mapped
TENSOR_ALIGNMENT = 64  # bytes, inside a weights file
GRAPH_PATH = "model.onnx"
WEIGHTS_PATH = "weights/model.bin"
REPORT_PATH = "report.json"
TOKENIZER_PATH = "tokenizer/tokenizer.json"
CHAT_TEMPLATE_PATH = "tokenizer/chat_template.jinja"
TOKENIZER_CONFIG_PATH = "tokenizer/config.json"  # an object of strings the chat template may use
MAX_JSON_BYTES = 16 << 20


class Artifact:
    """An artifact on disk, opened for reading: everything but the hashes has been checked.

    Attributes:
        path: The directory.
        manifest: What ``manifest.json`` says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._entries = {entry.path: entry for entry in manifest.files}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read and check a manifest, and the presence and size of every file it lists.

        Raises:
            UsageError: There is no artifact at ``path``.
            MismatchError: The artifact is of another major version of the format.
            IntegrityError: The manifest, a path or a file's size is not what it must be.
        """
        root = Path(path)
        try:
            is_artifact = (root / MANIFEST_NAME).is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL in it
            is_artifact = False
        if not is_artifact:
            raise UsageError(
                f"{str(root)!r} is not an artifact: {_what_is_at(root)}.",
                f"An artifact is a folder with {MANIFEST_NAME}; `aicc compile MODEL --target T -o OUT.aicc` makes one.",
            )
        _contained(root, MANIFEST_NAME)
        artifact = cls(root, decode_manifest(_read_bounded(root / MANIFEST_NAME), root / MANIFEST_NAME))
        for entry in artifact.manifest.files:
            size = _contained(root, entry.path).st_size
            if size != entry.bytes:
                raise damaged(root / entry.path, f"it has {size} bytes, and the manifest says {entry.bytes}")
        return artifact

    def file(self, relative: str) -> Path:
        """The path of a file the manifest lists.

        Raises:
            IntegrityError: The manifest does not list it, so it must not be opened.
        """
        if relative not in self._entries:
            raise damaged(self.path / relative, f"{MANIFEST_NAME} does not list it")
        return self.path / relative

    def has(self, relative: str) -> bool:
        """Whether the manifest lists a file."""
        return relative in self._entries

    def weights(self) -> memoryview:
        """Map ``weights/model.bin``: its bytes, read-only, not resident until touched; none if there is no such file.

        Raises:
            IntegrityError: It was cut short after the artifact was opened.
        """
        if not self.has(WEIGHTS_PATH):
            return memoryview(b"")
        path = self.file(WEIGHTS_PATH)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise damaged(path, f"it cannot be mapped ({error})") from error
        if len(mapped) != self._entries[WEIGHTS_PATH].bytes:
            raise damaged(path, f"it has {len(mapped)} bytes now, and the manifest says otherwise")
        return memoryview(mapped)

    def variant(self, name: str | None = None) -> Variant:
        """The variant of that name, or for that target or family of targets; None is the first.

        Raises:
            MismatchError: The artifact was not compiled for it.
        """
        variants = self.manifest.variants
        if name is None:
            return variants[0]
        for attribute in ("name", "target", "family"):
            for variant in variants:
                if getattr(variant, attribute) == name:
                    return variant
        raise MismatchError(
            f"{self.path} was compiled for {', '.join(v.target for v in variants)}, not for {name}.",
            f"Compile the model for it: aicc compile MODEL --target {name} -o OUT.aicc",
        )

    def report(self) -> dict[str, Any]:
        """How the model was made: ``report.json``, an encoded ``CompileReport``.

        Seconds and peak memory come from ``timings.json`` and are absent if that file is: it is
        no part of what the manifest vouches for.

        Raises:
            IntegrityError: There is no report, or it is not a JSON object.
        """
        path = self.file(REPORT_PATH)
        report = decode_json(_read_bounded(path), path, dict[str, Any])
        timings_path = self.path / TIMINGS_PATH
        if timings_path.is_file() and not timings_path.is_symlink():
            try:
                timings = decode_json(_read_bounded(timings_path), timings_path, CompileTimings)
            except IntegrityError:
                return report
            _add_missing(report, msgspec.to_builtins(timings))
        return report

    def verify(self, paths: Iterable[str] | None = None) -> None:
        """Hash files, all of them unless told which, and compare with the manifest.

        Raises:
            IntegrityError: A file is not the one the manifest describes; it and both hashes are named.
        """
        for relative in self._entries if paths is None else paths:
            path = self.file(relative)
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(path, error) from error
            expected = self._entries[relative].sha256
            if found != expected:
                raise damaged(path, f"its sha256 is {found}, and the manifest says {expected}")


def _read_bounded(path: Path) -> bytes:
    """A whole JSON file, unless it is larger than any of ours can be."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > MAX_JSON_BYTES:
        raise damaged(path, f"it is larger than {MAX_JSON_BYTES} bytes")
    return data


def _contained(root: Path, relative: str) -> os.stat_result:
    """Status of a regular file that is inside ``root`` after every link on the way is followed."""
    path = root / relative
    try:
        real = os.path.realpath(path, strict=True)
        inside = os.path.commonpath([real, os.path.realpath(root)]) == os.path.realpath(root)
        status = os.stat(real)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not inside:
        raise damaged(path, f"it is a link that leads outside the artifact, to {real}")
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "it is not a regular file")
    return status


def _unreadable(path: Path, error: OSError) -> AiccError:
    if isinstance(error, PermissionError):
        return UsageError(f"{path} cannot be read: {error.strerror}.", "Get read permission on it.")
    return damaged(path, f"it cannot be read ({error.strerror})")


def _what_is_at(path: Path) -> str:
    """Words for something that is not an artifact."""
    try:
        if not path.exists():
            return "there is nothing there"
        if path.is_dir():
            is_source = (path / "config.json").is_file()
            return "it is a model folder, a source to compile" if is_source else f"the folder has no {MANIFEST_NAME}"
        if not path.is_file():
            return "it is neither a folder nor a file"
        with path.open("rb") as file:
            return "it is a GGUF file, a source to compile" if file.read(4) == b"GGUF" else "it is a single file"
    except (OSError, ValueError) as error:
        return f"the path cannot be read ({error})"


def _add_missing(report: Any, timings: Any) -> None:
    """Give ``report`` the keys of ``timings`` it lacks, item by item where lists have one length."""
    if isinstance(report, dict) and isinstance(timings, dict):
        for key, value in timings.items():
            _add_missing(report.setdefault(key, value), value)
    elif isinstance(report, list) and isinstance(timings, list) and len(report) == len(timings):
        for item, timing in zip(report, timings, strict=True):
            _add_missing(item, timing)
