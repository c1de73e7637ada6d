"""Real models of tensors on openvino:cpu, against onnxruntime on their sources."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from sentences import mean_pooled, tokens_of
from tolerances import TOLERANCES, assert_within, cosine

from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import load


def _on(target: str, model: str, folder: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    path = folder / f"{target.replace(':', '-')}.aicc"
    compile_model(model, target, path)
    with load(path) as session:
        names = [spec.name for spec in session.signatures["default"].inputs]
        return session.run({name: inputs[name] for name in names})


def test_sentence_embeddings_are_those_of_the_source(tmp_path: Path) -> None:
    inputs = tokens_of(resolve("minilm-l6").path)
    found = _on("openvino:cpu", "minilm-l6", tmp_path, inputs)["last_hidden_state"]
    expected = _on("reference:cpu", "minilm-l6", tmp_path, inputs)["last_hidden_state"]
    mask = inputs["attention_mask"]
    assert cosine(mean_pooled(found, mask), mean_pooled(expected, mask)) >= TOLERANCES["cosine"]["embeddings"]


def _picture(*shape: int) -> NDArray[np.float32]:
    """Something with edges and gradients, the same every time."""
    y, x = np.mgrid[0 : shape[-2], 0 : shape[-1]]
    base = np.sin(x / 7) + np.cos(y / 5) + ((x // 16 + y // 16) % 2)
    return np.broadcast_to((base / 3).astype(np.float32), shape).copy()


def _silero() -> dict[str, NDArray[Any]]:
    time = np.arange(576, dtype=np.float32) / 16000
    voice = np.sin(2 * np.pi * 220 * time) * np.sin(2 * np.pi * 3 * time)
    return {"input": voice[None].astype(np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("rapidocr-det", {"x": _picture(1, 3, 96, 160)}),
        ("rapidocr-rec", {"x": _picture(1, 3, 48, 160)}),
        ("rapidocr-cls", {"x": _picture(1, 3, 48, 192)}),
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
    found = _on("openvino:cpu", model, tmp_path, inputs)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert_within("model", found[name], value)
