"""Artifacts whose digests are right and whose facts are not: refused before OpenVINO computes with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact.artifact_sample import forge, forge_file
from onnx import TensorProto, helper

from aicc.compiler.pipeline import compile_model
from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import IntegrityError, MismatchError

DECODER = "variants/openvino-cpu/decoder.json"


@pytest.fixture
def copy(demo_artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_artifact.path, tmp_path / "forged.aicc"))


def more_heads(layer: dict[str, Any]) -> None:
    layer["kv_heads"] *= 2


def larger_heads(layer: dict[str, Any]) -> None:
    layer["head_size"] = 65_536


def odd_heads(layer: dict[str, Any]) -> None:
    layer["kv_heads"], layer["head_size"] = 1, 1


def slopes_of_other_heads(layer: dict[str, Any]) -> None:
    layer["slopes"] = [0.5]


@pytest.mark.parametrize("lie", [more_heads, larger_heads, odd_heads, slopes_of_other_heads])
def test_heads_the_stored_graph_does_not_have_are_refused(copy: Path, lie: Callable[[dict[str, Any]], None]) -> None:
    layout = json.loads((copy / DECODER).read_bytes())
    lie(layout["layers"][3])
    forge_file(copy, DECODER, json.dumps(layout).encode())
    with pytest.raises(IntegrityError, match=r"attention\.3"):
        load(copy)


def test_a_vocabulary_the_stored_graph_does_not_have_is_refused(copy: Path) -> None:
    forge(copy, llm__vocab_size=1 << 24)
    with pytest.raises(IntegrityError, match="16777216"):
        load(copy)


def test_a_version_of_many_digits_is_only_a_later_one(copy: Path) -> None:
    forge(copy, variants__0__requires={"openvino": "9" * 5000})
    with pytest.raises(MismatchError, match="made with OpenVINO"):
        load(copy)


def test_a_small_constant_in_another_file_is_the_models_wherever_the_compiler_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder, value in ((model, 2), (elsewhere, 9)):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(np.full(4, value, np.float32).tobytes())
    node = helper.make_node("Add", ["x", "w"], ["y"])
    value_info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="weights.bin")
    weight.external_data.add(key="length", value="16")
    graph = helper.make_graph([node], "g", value_info[:1], value_info[1:], [weight])
    path = model / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )
    monkeypatch.chdir(elsewhere)
    compile_model(str(path), "openvino:cpu", tmp_path / "out.aicc")
    with load(tmp_path / "out.aicc") as session:
        assert session.run({"x": np.ones(4, np.float32)})["y"].tolist() == [3] * 4
