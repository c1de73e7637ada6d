"""What a real decoder loses on held-out text, as each family compiles it. The source reads the text once for all."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from token_batch import token_batch
from tolerances import TOLERANCES

from aicc.compiler import evaluate
from aicc.compiler.importers import ImportedModel, import_model
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, load
from aicc.runtime.artifact import Quality


@pytest.fixture(scope="module", autouse=True)
def source() -> Iterator[ImportedModel]:
    """SmolLM2 as it was published, whose logits for a text are computed once, also where a compile measures."""
    imported = import_model(resolve("smollm2-135m"))
    known: dict[bytes, NDArray[np.float32]] = {}
    with evaluate.reference(imported) as read, pytest.MonkeyPatch.context() as patch:

        def remembered(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            if ids.tobytes() not in known:
                known[ids.tobytes()] = read(ids)
            return known[ids.tobytes()]

        patch.setattr(evaluate, "reference", lambda _: nullcontext(remembered))
        yield imported


def _keeps(quality: Quality | None, name: str) -> None:
    limits = TOLERANCES["quality"][name]
    assert quality is not None
    assert quality.tokens >= limits["tokens"]
    assert quality.kl_mean <= limits["kl_mean"]
    assert quality.top1_agreement >= limits["top1_agreement"]


def test_the_default_of_openvino_keeps_the_quality(demo_artifact: Artifact, source: ImportedModel) -> None:
    with load(demo_artifact.path) as model:
        _keeps(evaluate.measure_quality(model, source), "auto")


def test_the_default_of_cpu_keeps_the_quality(cpu_artifact: Artifact, source: ImportedModel) -> None:
    with load(cpu_artifact.path) as model:
        _keeps(evaluate.measure_quality(model, source), "auto, cpu")


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "limits"), [({"kv": "int8"}, "auto, int8 cache"), ({"activations": "int16"}, "auto, int16 activations")]
)
def test_other_number_formats_have_a_measured_quality_of_their_own(
    cpu_artifact: Artifact, options: dict[str, str], limits: str, tmp_path: Path
) -> None:
    quality = compile_model("smollm2-135m", "cpu", tmp_path / "m.aicc", **options).quality
    _keeps(quality, limits)
    assert quality != cpu_artifact.manifest.quality


def test_keys_and_values_in_bytes_take_half_the_memory_and_no_row_minds_its_neighbours(tmp_path: Path) -> None:
    compile_model("smollm2-135m", "cpu", tmp_path / "m.aicc", kv="int8", measure=False)
    with load(tmp_path / "m.aicc", kv_tokens=512) as model:
        bytes_per_token = model.manifest.memory.kv_bytes_per_token
        assert bytes_per_token == 30 * 3 * 2 * (64 + 4)  # layers, heads, keys and values
        executable = model._executable  # type: ignore[attr-defined]
        assert executable._about.page_bytes == 16 * bytes_per_token
        texts = [range(10 * i, 10 * i + 3 + 5 * i) for i in range(4)]
        pages = [range(2 * i, 2 * i + 2) for i in range(4)]
        together = executable.forward(token_batch(texts, [0] * 4, pages, last_rows=True)).copy()
        for text, row in zip(texts, together, strict=True):
            assert np.array_equal(executable.forward(token_batch([text], [0], [[20, 21]], last_rows=True))[0], row)
