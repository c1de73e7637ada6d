"""The environment optimum-intel lives in, apart from ours, and how it is run there.

Its dependencies do not get along with ours (among them torchvision, which needs another build of
torch), so it has a virtual environment under the cache, made on first use, and is driven as a
subprocess.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from aicc.runtime.errors import ResourceError, UsageError
from aicc.runtime.machine import cache_directory

Progress = Callable[[str], None]

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
_INSTALL_SECONDS = 1800


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
        _install([sys.executable, "-P", "-m", "venv", str(made)])
        pip = [str(_python(made)), "-P", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
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
    result = run(command, _INSTALL_SECONDS, "installing optimum-intel", {})
    if result.returncode == 0:
        return
    if "No space left on device" in result.stderr:
        raise ResourceError("optimum-intel cannot be installed: the disk is full.", "Free some disk.")
    raise UsageError(
        f"optimum-intel cannot be installed: {last_error(result.stderr)}.",
        "Check the network connection and pip's package index.",
    )


def run(command: list[str], timeout: float, what: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program of that environment to its end.

    Args:
        command: The program and its arguments.
        timeout: Seconds it may take.
        what: What it does, for the message.
        variables: Environment variables to set.

    Raises:
        ResourceError: It took too long, or the system ended it for its memory.
    """
    environment = os.environ | variables
    environment.pop("PYTHONPATH", None)  # our packages are not for that environment
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        what = f"{what} did not finish in {timeout / 60:.0f} minutes and was stopped."
        raise ResourceError(what, "Use a faster machine or network.") from error
    if done.returncode == -signal.SIGKILL:
        raise ResourceError(f"{what} was ended by the system: it needs more memory.", "Use a larger machine.")
    return done


def last_error(output: str) -> str:
    """The line of a traceback or of pip that says what was wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1][:300]
