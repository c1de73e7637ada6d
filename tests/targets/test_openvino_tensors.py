"""Real models of tensors on openvino:cpu, against onnxruntime on their sources."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from pictures import picture
from sentences import mean_pooled, tokens_of
from tolerances import TOLERANCES, assert_within, cosine

from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, load


def _compute(model: str, inputs: dict[str, NDArray[Any]], folder: Path) -> dict[str, NDArray[Any]]:
    compile_model(model, "openvino:cpu", folder / "m.aicc")
    with load(folder / "m.aicc") as session:
        names = [spec.name for spec in session.signatures["default"].inputs]
        return session.run({name: inputs[name] for name in names})


def test_sentence_embeddings_are_those_of_the_source(reference_encoder: Artifact, tmp_path: Path) -> None:
    inputs = tokens_of(resolve("minilm-l6").path)
    found = _compute("minilm-l6", inputs, tmp_path)["last_hidden_state"]
    with load(reference_encoder.path) as session:
        expected = session.run(inputs)["last_hidden_state"]
    mask = inputs["attention_mask"]
    assert cosine(mean_pooled(found, mask), mean_pooled(expected, mask)) >= TOLERANCES["cosine"]["embeddings"]


def _silero() -> dict[str, NDArray[Any]]:
    time = np.arange(576, dtype=np.float32) / 16000
    voice = np.sin(2 * np.pi * 220 * time) * np.sin(2 * np.pi * 3 * time)
    return {"input": voice[None].astype(np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("rapidocr-det", {"x": picture(1, 3, 96, 160)}),
        ("rapidocr-rec", {"x": picture(1, 3, 48, 160)}),
        ("rapidocr-cls", {"x": picture(1, 3, 48, 192)}),
        ("silero-vad-16k", _silero()),
        ("minilm-l6-int8", tokens_of(resolve("minilm-l6").path)),
    ],
)
def test_onnx_models_give_what_onnxruntime_gives(model: str, inputs: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(resolve(model).path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    expected = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {n: inputs[n] for n in names}), strict=True)
    )
    found = _compute(model, inputs, tmp_path)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert_within("model", found[name], value)
