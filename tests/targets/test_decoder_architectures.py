"""Miniatures of every decoder architecture through the whole pipeline, against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import DECODERS, make_decoder
from numpy.typing import NDArray
from token_batch import token_batch
from tolerances import assert_within

from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.runtime import Model, load
from aicc.runtime.errors import UnsupportedError

CAPPED = ("gemma2",)  # soft-caps its attention scores, which OpenVINO's paged kernel cannot
# Only their tables of cosines are others than their namesakes': the importer's work, which one target shows.
TABLES = ("llama 3.1 positions", "llama linear positions", "llama yarn positions", "phi3 long positions")
CASES = [("openvino:cpu", name) for name in DECODERS if name not in CAPPED]
CASES += [("cpu", name) for name in DECODERS if name not in TABLES]
TOKENS = 28  # beyond every window, within every context


def _compile(name: str, target: str, folder: Path) -> tuple[Path, NDArray[np.int64], list[NDArray[np.float32]]]:
    """The artifact, two sequences ``[2, TOKENS]`` and what transformers computes for each."""
    model = make_decoder(name)
    model.save_pretrained(folder)
    ids = torch.randint(3, 211, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    compile_model(Source(folder, "huggingface", "miniature"), target, folder / "m.aicc", quant="fp32")
    return folder / "m.aicc", ids.numpy(), list(expected)


def _step(
    model: Model, tokens: list[NDArray[np.int64]], past: list[int], pages: list[list[int]]
) -> NDArray[np.float32]:
    """Logits of every new token of several sequences in one step."""
    return model._executable.forward(token_batch(tokens, past, pages)).copy()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target", "name"), CASES)
def test_a_decoder_computes_what_transformers_computes_at_once_and_in_steps(
    target: str, name: str, tmp_path: Path
) -> None:
    path, ids, expected = _compile(name, target, tmp_path)
    with load(path, kv_tokens=512) as model:
        assert_within("model", model.logits(ids[0].tolist()), expected[0])
        # Two sequences at different places: a long prompt beside a short one, then pieces of different lengths.
        first = _step(model, [ids[0, :20], ids[1, :3]], [0, 0], [[0, 1], [2, 3]])
        second = _step(model, [ids[0, 20:21], ids[1, 3:27]], [20, 3], [[0, 1], [2, 3]])
        third = _step(model, [ids[0, 21:], ids[1, 27:]], [21, 27], [[0, 1], [2, 3]])
    assert_within("model", np.concatenate([first[:20], second[:1], third[:7]]), expected[0])
    assert_within("model", np.concatenate([first[20:], second[1:], third[7:]]), expected[1])


@pytest.mark.parametrize("name", CAPPED)
def test_an_attention_the_chip_cannot_run_is_refused_by_node(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layers\.0.*Attention.*softcap") as refused:
        _compile(name, "openvino:cpu", tmp_path)
    assert "reference" in refused.value.remedy
    assert not (tmp_path / "m.aicc").exists()
