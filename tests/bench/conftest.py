"""What the tests of measuring share: the scripts under benchmarks/, a source, a model of tensors."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aicc.compiler.importers import ImportedModel, import_model
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="session")
def smollm2_source() -> ImportedModel:
    """The demo model as its importer gives it."""
    return import_model(resolve("smollm2-135m"), digest=False)


@pytest.fixture(scope="session")
def doubling_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``y = 2 x`` for float32 ``[batch, width, 3]``."""
    folder = tmp_path_factory.mktemp("doubling")
    shape = ["batch", "width", 3]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, folder / "doubling.onnx")
    compile_model(str(folder / "doubling.onnx"), "openvino:cpu", folder / "doubling.aicc")
    return folder / "doubling.aicc"
