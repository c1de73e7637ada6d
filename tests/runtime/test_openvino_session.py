"""A model of tensors on OpenVINO, used as Python programs use things: from threads, and after its end."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_tensors import expected, small_graph

from aicc.compiler.pipeline import compile_model
from aicc.runtime import Session, load
from aicc.runtime.errors import UsageError


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    onnx.save(ir.to_proto(small_graph()), folder / "small.onnx")
    compile_model(str(folder / "small.onnx"), "openvino:cpu", folder / "small.aicc", measure=False)
    return folder / "small.aicc"


@pytest.fixture
def session(artifact: Path) -> Session:
    loaded = load(artifact)
    assert isinstance(loaded, Session)
    return loaded


def inputs(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, "negate": np.array(False), "fixed": np.array([1, 2])}


def test_threads_take_turns_and_each_gets_its_own_result(session):
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((1 + i % 7, 8), dtype=np.float32) for i in range(200)]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda x: session.run(inputs(x))["y"], rows))
    for x, y in zip(rows, outputs, strict=True):
        np.testing.assert_allclose(y, expected(x, False), rtol=1e-4, atol=1e-4)


def test_a_closed_session_says_so(session):
    session.close()
    session.close()
    with pytest.raises(UsageError, match="the model was closed"):
        session.run(inputs(np.ones((2, 8), np.float32)))
