"""The Ray example on two nodes of a local cluster, in an environment of its own."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aicc.runtime.artifact import Artifact

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that has the extra `ray`, made once for each list of dependencies."""
    made_from = [_ROOT / "pyproject.toml", _ROOT / "constraints.txt"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_from)).hexdigest()[:16]
    folder = _ROOT / "build" / "ray" / digest
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[ray]"]
        subprocess.run(install, check=True, cwd=_ROOT)
        (folder / "complete").touch()
    return python


@pytest.mark.full
def test_more_load_starts_a_replica_on_the_other_node(python: Path, cpu_artifact: Artifact, tmp_path: Path) -> None:
    script = Path(__file__).parent / "ray_cluster" / "two_nodes.py"
    command = [python, script, cpu_artifact.path, "result.json"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads((tmp_path / "result.json").read_text())

    assert found["whole"]["usage"]["completion_tokens"] == 8
    events = [line.removeprefix("data: ") for line in found["streamed"].splitlines() if line]
    assert events[-1] == "[DONE]"
    text = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
    assert text == found["whole"]["choices"][0]["text"]
    assert len(found["before"]) == 1
    assert len(set(found["after"])) == 2
