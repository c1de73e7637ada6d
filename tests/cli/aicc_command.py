"""The real command in a process of its own, and small ONNX files to give it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

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


def run_aicc(
    *arguments: object, stdin: str = "", file_limit: int | None = None, env: dict[str, str] | None = None
) -> Result:
    """Run ``aicc``.

    Args:
        arguments: Its words.
        stdin: What it can read.
        file_limit: Most bytes a file it writes may have, as on a disk that is full after that.
        env: More environment.
    """

    # By a command and not in the forked process, where the threads of other tests' libraries (gRPC) would be missing.
    limit = [] if file_limit is None else ["prlimit", f"--fsize={file_limit}"]
    done = subprocess.run(
        [*limit, AICC, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


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
