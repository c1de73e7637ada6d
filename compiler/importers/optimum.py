"""The second importer for Hugging Face models: optimum-intel, in an environment of its own.

It knows architectures mobius lacks and exports OpenVINO IR, which serves the openvino family only.
Its dependencies do not get along with ours (among them torchvision, which needs another build of
torch), so it lives in a virtual environment under the cache, made on first use, and is driven as a
subprocess. No code of the model's is run there: remote code stays off and the hub is not asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from aicc.compiler.importers import Source
from aicc.runtime.errors import ResourceError, UnsupportedError, UsageError
from aicc.runtime.machine import cache_directory

Progress = Callable[[str], None]
WeightFormat = Literal["fp32", "fp16", "int8", "int4"]

VERSION = "2.2.0"  # of optimum-intel
# Everything it needs for language models, and not torchvision, which it asks for and does not use for them.
_WITHOUT_DEPENDENCIES = (f"optimum-intel=={VERSION}", "optimum==2.3.0")
_REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==5.5.4",
    "huggingface-hub<1.22",
    "nncf>=3.3",
    "openvino>=2026.2",
    "openvino-tokenizers>=2026.2",
    "requests>=2.33",
    "setuptools",
    "sentencepiece",
)
_DOWNLOAD_MB, _DISK_MB = 400, 1700
_INSTALL_SECONDS, _EXPORT_SECONDS = 1800, 3600


def export_openvino(
    source: Source,
    directory: Path,
    weight_format: WeightFormat = "fp32",
    progress: Progress = lambda line: None,
    timeout: float = _EXPORT_SECONDS,
) -> Path:
    """Export a Hugging Face language model as stateful OpenVINO IR.

    Args:
        source: A Hugging Face folder.
        directory: Folder to make; it holds ``openvino_model.xml`` and ``.bin`` afterwards, and
            nothing is left of it when the export fails.
        weight_format: What optimum-intel compresses weights to.
        progress: Called with one line for each step that takes time.
        timeout: Seconds the export may take.

    Returns:
        The path of ``openvino_model.xml``. Inputs are ``input_ids``, ``attention_mask``,
        ``position_ids`` and ``beam_idx``; the KV cache is the model's state.

    Raises:
        UnsupportedError: Another kind of source, or an architecture optimum-intel does not know.
        UsageError: The folder exists, or the environment cannot be made.
        ResourceError: Not enough disk.
    """
    if source.kind != "huggingface":
        raise UnsupportedError(
            f"the optimum importer reads Hugging Face folders, and {source.name} is {source.kind}.",
            "Leave --importer out.",
        )
    if directory.exists():
        raise UsageError(f"{directory} exists.", "Name a folder that does not.")
    python = environment(progress)
    progress(f"exporting {source.name} with optimum-intel {VERSION}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory.parent) as scratch:
        output = Path(scratch) / "ir"
        command = [str(python), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(source.path.resolve()), "--task", "text-generation-with-past"]
        command += ["--weight-format", weight_format, "--disable-convert-tokenizer", str(output)]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        result = _run(command, timeout, f"exporting {source.name}", offline)
        if result.returncode or not (output / "openvino_model.xml").is_file():
            raise UnsupportedError(
                f"optimum-intel cannot export {source.name}: {_last_error(result.stderr)}.",
                "Export the model to ONNX or GGUF and give that file.",
            )
        output.rename(directory)
    return directory / "openvino_model.xml"


def environment(progress: Progress = lambda line: None) -> Path:
    """The Python of optimum-intel's environment, made if it is not there yet.

    Raises:
        UsageError: It cannot be installed; pip's reason is given.
        ResourceError: Not enough disk.
    """
    folder = cache_directory() / "envs" / f"optimum-{VERSION}"
    python = _python(folder)
    if python.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free // 1_000_000
    if free < _DISK_MB:
        raise ResourceError(
            f"optimum-intel's environment needs {_DISK_MB} MB in {folder.parent} and {free} MB are free.",
            "Free some disk, or set XDG_CACHE_HOME to a larger one.",
        )
    cost = f"about {_DOWNLOAD_MB} MB to download, {_DISK_MB} MB on disk"
    progress(f"making optimum-intel's environment in {folder}, once: {cost}")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        made = Path(scratch) / "env"
        _install([sys.executable, "-m", "venv", str(made)])
        pip = [str(_python(made)), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        progress("installing torch, transformers, nncf and openvino into it")
        _install([*pip, *_REQUIREMENTS])
        progress(f"installing optimum-intel {VERSION} into it")
        _install([*pip, "--no-deps", *_WITHOUT_DEPENDENCIES])
        try:
            made.rename(folder)  # works because only its Python is run, never a script that names its folder
        except OSError:
            if not python.exists():  # else another process was faster
                raise
    return python


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _install(command: list[str]) -> None:
    result = _run(command, _INSTALL_SECONDS, "installing optimum-intel", {})
    if result.returncode == 0:
        return
    if "No space left on device" in result.stderr:
        raise ResourceError("optimum-intel cannot be installed: the disk is full.", "Free some disk.")
    raise UsageError(
        f"optimum-intel cannot be installed: {_last_error(result.stderr)}.",
        "Check the network connection and pip's package index.",
    )


def _run(command: list[str], timeout: float, what: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    environment.pop("PYTHONPATH", None)  # our packages are not for that environment
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        what = f"{what} did not finish in {timeout / 60:.0f} minutes and was stopped."
        raise ResourceError(what, "Use a faster machine or network.") from error


def _last_error(output: str) -> str:
    """The line of a traceback or of pip that says what was wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1][:300]
