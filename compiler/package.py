"""Packages what was compiled: writes an artifact that is either complete or not there.

What is decided by source, target and options is deterministic: the same three give the same
manifest, and by its hashes the same files. What is measured (seconds, memory) would differ from run
to run, so it is cut out of the report into ``timings.json``, the one file the manifest does not list.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import onnx_ir as ir

from aicc.compiler.disk import (
    free_bytes,
    make_staging,
    move_into_place,
    no_space,
    sweep_leftovers,
    sync,
    writing,
)
from aicc.compiler.graph_file import encode_graph, large_tensor_bytes
from aicc.compiler.report import CompileReport
from aicc.compiler.weights import WeightFile
from aicc.runtime.artifact import (
    CHAT_TEMPLATE_PATH,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    GRAPH_PATH,
    MANIFEST_NAME,
    REPORT_PATH,
    TIMINGS_PATH,
    TOKENIZER_CONFIG_PATH,
    TOKENIZER_PATH,
    WEIGHTS_PATH,
    Artifact,
    CompileTimings,
    FileEntry,
    Format,
    Manifest,
    encode_manifest,
)
from aicc.runtime.errors import IntegrityError, UsageError, is_disk_full

_TOP_LEVEL = {MANIFEST_NAME, TIMINGS_PATH} | {
    path.split("/")[0] for path in (GRAPH_PATH, WEIGHTS_PATH, REPORT_PATH, TOKENIZER_PATH, "variants/<name>")
}
_VOLATILE = ("seconds", "peak_rss_bytes")


class ArtifactWriter:
    """Writes one artifact; a context manager.

    Everything goes to a hidden directory beside the output, which :meth:`commit` renames into
    place. However the block is left before that, the directory is removed and the output is as it
    was; if the process is killed, the next compile to the same output removes it.

    Args:
        output: The directory to make. An artifact that is there already is replaced.
        expected_bytes: About how large it will be, if known, so that a full disk is noticed first.

    Attributes:
        path: The directory being filled.
        weights: The artifact's one weights file.

    Raises:
        UsageError: The output cannot be written, or is something that must not be replaced.
        ResourceError: There is no space on the disk.
    """

    path: Path
    weights: WeightFile

    def __init__(self, output: str | os.PathLike[str], expected_bytes: int = 0) -> None:
        self.output = Path(os.path.realpath(output))  # through a link, to replace what it points at
        self._expected_bytes = expected_bytes

    def __enter__(self) -> Self:
        with writing(self.output):
            check_replaceable(self.output)
            self.output.parent.mkdir(parents=True, exist_ok=True)
            sweep_leftovers(self.output)
            self._require_space(self._expected_bytes)
            self.path, self._lock = make_staging(self.output)
        self.weights = WeightFile(self.path / WEIGHTS_PATH, self.output / WEIGHTS_PATH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.weights.close()
        shutil.rmtree(self.path, ignore_errors=True)  # after a commit, this is the artifact that was replaced
        os.close(self._lock)
        if is_disk_full(error):
            raise no_space(Path(error.filename or self.output), None, error) from error

    def variant_directory(self, name: str) -> Path:
        """Make and return the directory of a variant's executable."""
        directory = self.path / "variants" / name
        with writing(self.output):
            directory.mkdir(parents=True)
        return directory

    def write_graph(self, model: ir.Model) -> None:
        """Write the portable graph; tensors over 1 kB go to the weights file, one at a time.

        Args:
            model: The graph; it can be used afterwards as before.

        Raises:
            ResourceError: The disk cannot hold its weights.
        """
        self._require_space(large_tensor_bytes(model) - self.weights.size)  # what is there already may be shared
        self._write(GRAPH_PATH, encode_graph(model, self.weights))

    def write_tokenizer(self, json_text: str, chat_template: str | None, config: dict[str, str]) -> None:
        """Write the tokenizer's files.

        Args:
            json_text: A ``tokenizers`` file.
            chat_template: Jinja text, None if there is none.
            config: Strings the chat template may use (``bos_token``, ``eos_token``, …).
        """
        self._write(TOKENIZER_PATH, _utf8(_with_short_merges(json_text), "tokenizer.json"))
        if chat_template is not None:
            self._write(CHAT_TEMPLATE_PATH, _utf8(chat_template, "the chat template"))
        self._write(TOKENIZER_CONFIG_PATH, _json(dict(sorted(config.items()))))

    def stage(self, manifest: Manifest, report: CompileReport) -> Artifact:
        """Complete the artifact without publishing it, so that it can be loaded and judged first.

        May be called again, with better facts or more files.

        Args:
            manifest: All facts; ``format`` and ``files`` are filled in here.
            report: How the model was made.

        Returns:
            The artifact in its hidden directory, opened as any reader opens it.

        Raises:
            IntegrityError: A fact in the manifest is absurd or inconsistent.
        """
        self.weights.finish()
        facts = msgspec.to_builtins(report, order="deterministic")
        self._write(TIMINGS_PATH, _json(msgspec.to_builtins(msgspec.convert(facts, CompileTimings))))
        self._write(REPORT_PATH, _json(_without_volatile(facts)))
        files = tuple(self._entry(path) for path in self._listed())
        complete = msgspec.structs.replace(manifest, format=Format(FORMAT_MAJOR, FORMAT_MINOR), files=files)
        self._write(MANIFEST_NAME, encode_manifest(complete))
        try:
            return Artifact.open(self.path)
        except IntegrityError as error:
            what = error.message.replace(f"{self.path}{os.sep}", "")
            raise IntegrityError(
                f"an artifact cannot describe this model: {what}", "Change it in the model."
            ) from error

    def commit(self, manifest: Manifest, report: CompileReport) -> Artifact:
        """Complete the artifact and put it in its place in one step.

        Returns:
            The artifact at the output path.
        """
        self.stage(manifest, report)
        with writing(self.output):
            for directory, _, files in os.walk(self.path):
                for path in (*(Path(directory, file) for file in files), Path(directory)):
                    sync(path)
            check_replaceable(self.output)
            move_into_place(self.path, self.output)
        return Artifact.open(self.output)

    def _write(self, relative: str, data: bytes) -> None:
        path = self.path / relative
        with writing(self.output / relative, len(data)):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    def _listed(self) -> list[str]:
        """Paths of the files the manifest lists, sorted."""
        found = (Path(directory, file) for directory, _, files in os.walk(self.path) for file in files)
        paths = sorted(path.relative_to(self.path).as_posix() for path in found)
        return [path for path in paths if path not in (MANIFEST_NAME, TIMINGS_PATH)]

    def _entry(self, relative: str) -> FileEntry:
        if relative == WEIGHTS_PATH:  # hashed while it was written
            return FileEntry(relative, self.weights.size, self.weights.sha256)
        with (self.path / relative).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileEntry(relative, os.fstat(file.fileno()).st_size, digest)

    def _require_space(self, needed: int) -> None:
        if needed > free_bytes(self.output):
            raise no_space(self.output, needed)


def check_replaceable(output: Path) -> None:
    """Refuse to put an artifact where something else is.

    Raises:
        UsageError: There is a file, or a folder with anything in it that is no part of an artifact.
    """
    if not os.path.lexists(output):
        return
    names = sorted(os.listdir(output)) if output.is_dir() else None
    if names is None:
        problem = "is a file"
    elif names and MANIFEST_NAME not in names:
        problem = "is a folder that is not an artifact"
    elif foreign := [name for name in names if name not in _TOP_LEVEL]:
        problem = f"holds {foreign[0]!r}, which is no part of an artifact"
    else:
        return
    raise UsageError(f"{output} {problem}, so it is not replaced.", "Move it away, or choose another output.")


def _without_volatile(value: Any) -> Any:
    """A report's JSON form without the figures that differ from run to run."""
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _with_short_merges(json_text: str) -> str:
    """The same tokenizer with the pairs of a BPE's merges as ``"a b"``, which is read a fifth faster than lists are.

    Left as it is where a part has a space in it, and where there is nothing to shorten.
    """
    tokenizer = json.loads(json_text)
    merges = tokenizer.get("model", {}).get("merges") or []
    if not merges or any(isinstance(pair, str) or any(" " in part for part in pair) for pair in merges):
        return json_text
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise IntegrityError(f"{what} is not Unicode text: {error.reason}.", "Fix it in the source model.") from error
