"""What tests of several rooms share."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime.artifact import Artifact

_ROOT = Path(__file__).resolve().parent.parent
_CACHE = _ROOT / "build" / "test-cache"
_KEPT = 3  # artifacts of earlier states of the tree


@pytest.fixture(scope="session")
def demo_artifact() -> Artifact:
    """SmolLM2-135M-Instruct for openvino:cpu, compiled once for each state of what makes it."""
    source = resolve("smollm2-135m")
    key = hashlib.sha256(source.path.name.encode() + source.revision.encode())
    for part in _makers():
        key.update(part)
    path = _CACHE / f"smollm2-135m-{key.hexdigest()[:16]}.aicc"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:  # two test runs at once compile it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_model(source, "openvino:cpu", path, measure=False)
        path.touch()
        for old in sorted(_CACHE.glob("*.aicc"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old)
    return Artifact.open(path)


def _makers() -> Iterator[bytes]:
    """Everything besides the source that the artifact's bytes depend on."""
    for package in ("openvino", "onnx-ir", "onnxscript", "mobius-onnx"):
        yield metadata.version(package).encode()
    for folder in ("compiler", "targets", "runtime"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            if "server" not in path.relative_to(_ROOT).parts:
                yield path.read_bytes()
