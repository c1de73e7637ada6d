"""The real command, in this process or in one of its own, and small ONNX files to give it."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from aicc.cli.main import main
from aicc.runtime.artifact import Artifact
from aicc.runtime.manifest import encode_manifest

AICC = str(Path(sys.executable).with_name("aicc"))
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10  # of the small ONNX model


@dataclass(frozen=True)
class Result:
    """What a command left behind: its exit code, its results and its remarks."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def call_aicc(*arguments: object, stdin: str = "", env: dict[str, str] | None = None) -> Result:
    """Call ``aicc`` in this process, which has imported already what a process of its own takes seconds for.

    Args:
        arguments: Its words.
        stdin: What it can read.
        env: More environment.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            patch.dict(os.environ, env or {}),
            patch("sys.stdin", io.StringIO(stdin)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = main(list(map(str, arguments)))
    finally:
        signal.signal(signal.SIGTERM, terminate)
    return _result(code, out.getvalue(), err.getvalue())


def run_aicc(*arguments: object, file_limit: int | None = None) -> Result:
    """Run ``aicc`` in a process of its own.

    Args:
        arguments: Its words.
        file_limit: Most bytes a file it writes may have, as on a disk that is full after that.
    """
    # By a command and not in the forked process, where the threads of other tests' libraries (gRPC) would be missing.
    limit = [] if file_limit is None else ["prlimit", f"--fsize={file_limit}"]
    done = subprocess.run(
        [*limit, AICC, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return _result(done.returncode, done.stdout, done.stderr)


def _result(code: int, out: str, err: str) -> Result:
    assert "Traceback" not in err, err
    return Result(code, out, err)


def made_with_an_older_openvino(artifact: Path, copy: Path) -> Path:
    """A copy of an artifact for openvino:cpu that says an older OpenVINO made it."""
    shutil.copytree(artifact, copy)
    manifest = Artifact.open(artifact).manifest
    variants = tuple(msgspec.structs.replace(v, requires={"openvino": "2025.0.0"}) for v in manifest.variants)
    (copy / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, variants=variants)))
    return copy


def save_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: dict[str, list],
    weights: dict[str, np.ndarray] | None = None,
    domains: tuple[str, ...] = (),
) -> None:
    """Write an ONNX file; all tensors are float32."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
