"""`aicc bench`: what it measures, with the real demo model at tiny sizes."""

from pathlib import Path

import numpy as np
import pytest

from aicc.runtime.artifact import Artifact
from aicc.runtime.bench import DecoderBench, TensorBench, bench_artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.limits import matmul_peak, read_bandwidth


def test_a_decoder_is_measured_beside_the_bandwidth_of_this_machine(demo_artifact: Artifact):
    result = bench_artifact(demo_artifact.path, prompt_tokens=8, decode_tokens=3, repeat=2, threads=1)

    assert isinstance(result, DecoderBench)
    assert demo_artifact.manifest.llm is not None
    assert result.weight_bytes_per_token == demo_artifact.manifest.llm.weight_bytes_per_token > 0
    assert result.load_s > 0
    assert result.first_token_s > 0
    assert result.prefill_tokens_per_s_min <= result.prefill_tokens_per_s <= result.prefill_tokens_per_s_max
    assert result.decode_tokens_per_s_min <= result.decode_tokens_per_s <= result.decode_tokens_per_s_max
    assert result.peak_rss_bytes > result.weight_bytes_per_token
    used = result.decode_tokens_per_s * result.weight_bytes_per_token
    assert result.bandwidth_fraction == pytest.approx(used / result.read_bandwidth_bytes_per_s)
    assert (result.prompt_tokens, result.decode_tokens, result.repeat, result.threads) == (8, 3, 2, 1)


def test_a_model_of_tensors_is_timed_on_inputs_made_up_from_its_signature(doubling_artifact: Path):
    result = bench_artifact(doubling_artifact, repeat=3)

    assert isinstance(result, TensorBench)
    assert result.inputs == {"x": [1, 64, 3]}
    assert 0 < result.latency_s_min <= result.latency_s <= result.latency_s_max


def test_input_arrays_for_a_decoder_are_refused(demo_artifact: Artifact):
    with pytest.raises(UsageError, match="is a decoder"):
        bench_artifact(demo_artifact.path, inputs={"x": np.zeros(3)})


def test_a_prompt_that_does_not_fit_the_context_is_refused(demo_artifact: Artifact):
    with pytest.raises(UsageError, match="a prompt of 8190 tokens, its first new token and 64 more do not fit"):
        bench_artifact(demo_artifact.path, prompt_tokens=8190, decode_tokens=64)


@pytest.mark.parametrize("field", ["prompt_tokens", "decode_tokens", "repeat"])
def test_a_count_below_one_is_refused_by_name(demo_artifact: Artifact, field):
    with pytest.raises(UsageError, match=field.replace("_", " ")):
        bench_artifact(demo_artifact.path, **{field: 0})


@pytest.mark.parametrize("footprint", [0, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_read_bandwidth_is_measured_for_any_footprint(footprint, threads):
    assert read_bandwidth(footprint, threads, seconds=0.01) > 0


def test_the_matrix_peak_is_measured():
    assert matmul_peak(threads=1, size=64, rounds=1) > 0
