"""Small models for the command's tests."""

from pathlib import Path

import numpy as np
import pytest
from aicc_command import WEIGHT, Run, call_aicc, made_with_an_older_openvino, run_aicc, save_onnx
from onnx import helper

from aicc.runtime.artifact import Artifact


@pytest.fixture(scope="session")
def aicc() -> Run:
    return call_aicc


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sum/0 = x @ W + y`` and its ``relu``: two inputs, two outputs, one with a name no file can have."""
    path = tmp_path_factory.mktemp("onnx") / "affine.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["product"], name="multiply"),
        helper.make_node("Add", ["product", "y"], ["sum/0"], name="shift"),
        helper.make_node("Relu", ["sum/0"], ["relu"], name="cut"),
    ]
    save_onnx(path, nodes, {"x": ["n", 4], "y": [3]}, {"sum/0": ["n", 3], "relu": ["n", 3]}, {"W": WEIGHT})
    return path


@pytest.fixture(scope="session")
def tensors_artifact(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small ONNX model, compiled for openvino:cpu by the command."""
    path = tmp_path_factory.mktemp("tensors") / "affine.aicc"
    done = run_aicc("compile", onnx_file, "-o", path)
    assert done.code == 0, done.err
    assert done.out == f"{path}\n"
    return path


@pytest.fixture(scope="session")
def old_demo(demo_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo artifact as an older OpenVINO would have made it."""
    return made_with_an_older_openvino(demo_artifact.path, tmp_path_factory.mktemp("old") / "demo.aicc")


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    """Inputs of the small model as files."""
    files = {"x": np.ones((2, 4), np.float32), "y": np.array([-1, -2, -3], np.float32)}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: tmp_path / f"{name}.npy" for name in files}
