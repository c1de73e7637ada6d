"""``torch-cirh-opt``, the maker's stand-alone lowering tool, out of its public wheel.

The wheel is fetched when the first model is compiled, by version and sha256; one file of it is kept under the cache,
and none of its Python is installed. It is run as a process of its own, with a time limit.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from aicc.compiler.models import PullableModel, fetch
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError

TOOL = PullableModel(
    "torch-cirh-opt",
    "cerebras-pytorch",
    "2.10.0",
    "feebb5f542f89d21cea3af2c2b34cba5cac14d08733b79df629113bd5b1b0daa",
    95_440_218,
    ("cerebras/pytorch/lib/torch-cirh-opt",),
    9_745_248,
    "BSD-3-Clause",
    "lowers torch-dialect MLIR to CIRH",
    platform=("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux2014_x86_64"),
)
_SECONDS = 300


def check_machine() -> None:
    """Refuse machines that the tool is not for.

    Raises:
        MismatchError: It is for x86-64 Linux alone.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise MismatchError("torch-cirh-opt of Cerebras is for x86-64 Linux.", "Compile on such a machine.")


def find_tool() -> Path:
    """The tool, fetched if it is not in the cache yet; that it will be, and its size, is said on stderr.

    Raises:
        MismatchError: It is for x86-64 Linux alone.
        AiccError: It cannot be fetched.
    """
    check_machine()
    tool = fetch(TOOL, "tools", lambda line: print(f"cerebras: {line}, once", file=sys.stderr, flush=True))
    tool.chmod(0o755)
    return tool


def run_tool(tool: Path, source: Path, output: Path) -> Counter[str]:
    """Lower a file.

    Args:
        tool: From :func:`find_tool`.
        source: Torch-dialect MLIR in LLVM 14's syntax.
        output: Where CIRH goes.

    Returns:
        How many of each CIRH operator came out.

    Raises:
        UnsupportedError: The tool refused an operator; its own words are given.
        ResourceError: It did not end.
    """
    command = [str(tool), "--torch-to-cirh-pipeline", str(source), "-o", str(output)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"torch-cirh-opt did not end in {_SECONDS} seconds.", "Compile a smaller model.") from error
    if done.returncode:
        lines = [line.partition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line]
        reason = lines[0] if lines else f"it ended with {done.returncode}"
        raise UnsupportedError(
            f"torch-cirh-opt {TOOL.version} refused {source.name}: {reason[:300]}.", "Compile for another target."
        )
    return Counter(re.findall(r"cirh\.\w+", output.read_text()))
