"""`aicc eval`: the demo artifact against its source, and the source against the golden logits."""

import json
from pathlib import Path

import numpy as np
import pytest

from aicc.compiler.evaluate import measure_quality, reference
from aicc.compiler.importers import ImportedModel
from aicc.runtime import Model, load
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture(scope="module")
def model(demo_artifact: Artifact):
    with load(demo_artifact.path, kv_tokens=1024) as model:
        assert isinstance(model, Model)
        yield model


def test_the_reference_is_the_source_in_float32(smollm2_source: ImportedModel):
    golden = json.loads((GOLDEN / "smollm2-135m-instruct.json").read_text())
    expected = np.load(GOLDEN / "smollm2-135m-instruct.npz")
    with reference(smollm2_source) as logits:
        for number, prompt in enumerate(golden[:3]):
            got = logits(np.array(prompt["prompt_ids"]))[-1]
            np.testing.assert_allclose(got, expected[f"logits_{number}"], atol=1e-3)


def test_quality_is_measured_on_a_text_of_ones_own(smollm2_source: ImportedModel, model: Model, tmp_path: Path):
    text = tmp_path / "snow.txt"
    text.write_text("The snow had stopped in the night, and the whole street was quiet. " * 3)
    told: list[str] = []

    quality = measure_quality(model, smollm2_source, text, told.append)

    assert quality.tokens == len(model.tokenizer.encode(text.read_text()))
    assert quality.text.startswith("snow.txt sha256:")
    assert 0 <= quality.kl_mean <= quality.kl_p99 < 0.1
    assert quality.top1_agreement > 0.9
    assert quality.ppl == pytest.approx(quality.ppl_reference, rel=0.05)
    assert told == [f"compared {quality.tokens} of {quality.tokens} tokens"]


def test_a_text_of_one_token_is_refused(smollm2_source: ImportedModel, model: Model, tmp_path: Path):
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(UsageError, match=r"short\.txt .* has 1 tokens"):
        measure_quality(model, smollm2_source, tmp_path / "short.txt")
