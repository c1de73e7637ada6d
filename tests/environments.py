"""Environments of their own, for tools that would not fit into the one the tests run in."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

_BUILT = Path(__file__).parents[1] / "build" / "environments"


def environment(*requirements: Path) -> Path:
    """The interpreter of an environment with what files of requirements name, made once for each content of theirs.

    A file whose requirements have hashes is installed without what these need in turn.
    """
    texts = [file.read_text() for file in requirements]
    folder = _BUILT / hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for file, text in zip(requirements, texts, strict=True):
            alone = ["--no-deps"] if "--hash" in text else []
            subprocess.run([python, "-m", "pip", "install", "--quiet", *alone, "-r", file], check=True)
        (folder / "complete").touch()
    return python
