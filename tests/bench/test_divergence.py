"""The maths behind `aicc eval`, against a naive oracle."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aicc.compiler.evaluate import WINDOW, Divergence, log_softmax, read_text
from aicc.runtime.errors import MismatchError, QualityError, UsageError

logits = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
    elements=st.floats(-60, 60, width=32),
)


def naive_softmax(row: np.ndarray) -> list[float]:
    exponentials = [math.exp(float(x)) for x in row]
    return [e / math.fsum(exponentials) for e in exponentials]


def quality_of(candidate: np.ndarray, reference: np.ndarray, ids: np.ndarray):
    divergence = Divergence()
    divergence.add(candidate, reference, ids)
    return divergence.quality("a text")


@given(data=st.data(), reference=logits)
def test_kl_agreement_and_perplexity_equal_their_definitions(data, reference):
    tokens, vocab = reference.shape
    candidate = data.draw(arrays.arrays(np.float32, (tokens, vocab), elements=st.floats(-60, 60, width=32)))
    ids = data.draw(arrays.arrays(np.int64, tokens, elements=st.integers(0, vocab - 1)))
    quality = quality_of(candidate, reference, ids)

    p, q = ([naive_softmax(row) for row in model] for model in (reference, candidate))
    kl = [math.fsum(a * math.log(a / b) for a, b in zip(pr, qr, strict=True)) for pr, qr in zip(p, q, strict=True)]
    losses = [[-math.log(rows[t][ids[t + 1]]) for t in range(tokens - 1)] for rows in (p, q)]

    assert quality.tokens == tokens
    assert quality.kl_mean == pytest.approx(np.mean(kl), abs=1e-9)
    assert quality.kl_p99 == pytest.approx(np.percentile(kl, 99), abs=1e-9)
    assert quality.top1_agreement == np.mean(reference.argmax(1) == candidate.argmax(1))
    assert [math.log(quality.ppl_reference), math.log(quality.ppl)] == pytest.approx(np.mean(losses, axis=1))


@given(logits)
def test_a_model_does_not_diverge_from_itself(same):
    quality = quality_of(same, same, np.zeros(len(same), np.int64))
    assert (quality.kl_mean, quality.kl_p99, quality.top1_agreement) == (0.0, 0.0, 1.0)
    assert quality.ppl == quality.ppl_reference


@given(logits, st.floats(-50, 50, width=32))
def test_adding_a_constant_to_every_logit_changes_nothing(reference, constant):
    quality = quality_of(reference + np.float32(constant), reference, np.zeros(len(reference), np.int64))
    assert quality.kl_mean < 1e-6


def test_windows_longer_than_one_comparison_block_count_every_position_once():
    random = np.random.default_rng(0)
    reference, candidate = random.normal(size=(2, 200, 11)).astype(np.float32)
    ids = random.integers(0, 11, 200)
    quality = quality_of(candidate, reference, ids)
    rows = log_softmax(candidate)
    assert quality.tokens == 200
    assert math.log(quality.ppl) == pytest.approx(-rows[np.arange(199), ids[1:]].mean())


def test_a_token_the_source_rules_out_adds_nothing():
    reference = np.array([[0.0, 0.0, -np.inf]] * 2, np.float32)
    candidate = np.array([[0.0, 0.0, 0.0]] * 2, np.float32)
    assert quality_of(candidate, reference, np.zeros(2, np.int64)).kl_mean == pytest.approx(math.log(3 / 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_a_quality_error(value):
    candidate = np.zeros((3, 4), np.float32)
    candidate[1, 2] = value
    with pytest.raises(QualityError, match="cannot be compared in tokens 0 to 3"):
        quality_of(candidate, np.zeros((3, 4), np.float32), np.zeros(3, np.int64))


def test_models_with_different_vocabularies_are_a_mismatch():
    with pytest.raises(MismatchError, match="compiled from"):
        quality_of(np.zeros((3, 4), np.float32), np.zeros((3, 5), np.float32), np.zeros(3, np.int64))


def test_the_held_out_text_is_named_by_its_hash():
    content, description = read_text(None)
    assert len(content.split()) > 2000
    assert description.startswith("heldout.txt sha256:")
    assert WINDOW < 2000


def test_a_text_that_is_not_utf8_is_a_usage_error(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"latin\.txt cannot be read"):
        read_text(tmp_path / "latin.txt")
