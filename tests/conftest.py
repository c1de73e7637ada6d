"""What tests of several rooms share."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import vulkan
from hypothesis import settings

from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime.artifact import Artifact

vulkan.use_driver()  # before any test module looks for a device
settings.register_profile("aicc", deadline=None)  # how fast a machine is decides no test
settings.load_profile("aicc")

_ROOT = Path(__file__).resolve().parent.parent
_CACHE = _ROOT / "build" / "test-cache"
_KEPT = 3  # artifacts of earlier states of the tree


@pytest.fixture(scope="session")
def demo_artifact() -> Artifact:
    """SmolLM2-135M-Instruct for openvino:cpu, compiled once for each state of what makes it."""
    return _compiled("smollm2-135m", "openvino:cpu")


@pytest.fixture(scope="session")
def cpu_artifact() -> Artifact:
    """The same for the cpu family, whose results depend on a sequence alone, to the last bit."""
    return _compiled("smollm2-135m", "cpu")


@pytest.fixture(scope="session")
def encoder_artifact() -> Artifact:
    """all-MiniLM-L6-v2 for the cpu family."""
    return _compiled("minilm-l6", "cpu")


@pytest.fixture(scope="session")
def reference_encoder() -> Artifact:
    """The same for the reference family, whose results others are compared with."""
    return _compiled("minilm-l6", "reference:cpu")


def _compiled(model: str, target: str) -> Artifact:
    source = resolve(model)
    key = hashlib.sha256(source.path.name.encode() + source.revision.encode())
    for part in _makers():
        key.update(part)
    kind = f"{model}-{target.split(':')[0]}"
    path = _CACHE / f"{kind}-{key.hexdigest()[:16]}.aicc"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:  # two test runs at once compile it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_model(source, target, path, measure=False)
        path.touch()
        for old in sorted(_CACHE.glob(f"{kind}-*.aicc"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old)
    return Artifact.open(path)


def _makers() -> Iterator[bytes]:
    """Everything besides the source that the artifact's bytes depend on."""
    for package in ("openvino", "onnxruntime", "onnx-ir", "onnxscript", "mobius-onnx", "ziglang"):
        yield metadata.version(package).encode()
    for folder in ("compiler", "targets", "runtime"):
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h") and "server" not in path.relative_to(_ROOT).parts:
                yield path.read_bytes()
