"""Files of other bytes than they were made with are refused or computed with, and never read past."""

from __future__ import annotations

import ctypes
import json
from ctypes import byref, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_build import HERE, build
from native_model import Model, Shape, address, aligned, example, mapped
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from aicc.targets.cpu.lowering.tokenizer_file import encode

SHAPE = Shape()
SETTINGS = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
INTEGERS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
# Words to write over, most of them near the beginning where sizes stand; and how much is cut off or put on.
CHANGES = st.lists(st.tuples(st.integers(0, 16) | st.integers(0, 2**20), INTEGERS), max_size=6)
SIZES = st.just(0) | st.integers(-80, 80) | st.integers(-(2**20), 0)


def mutated(data: NDArray[np.uint8], changes: list[tuple[int, int]], more: int) -> NDArray[np.uint8]:
    """A copy with 32-bit words replaced and the end moved, in memory of exactly its size."""
    copy = aligned(max(4, len(data) + more))
    copy[:] = 0
    copy[: len(data)] = data[: len(copy)]
    words = copy[: len(copy) // 4 * 4].view(np.uint32)
    for at, value in changes:
        words[at % len(words)] = value
    return copy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    model = example(tmp_path_factory.mktemp("weights"), "portable", SHAPE)
    yield model
    model.close()


@pytest.fixture(scope="module")
def weights(model: Model, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    return mapped(next(tmp_path_factory.getbasetemp().glob(f"weights*/weights-{model.description.weights_bytes}.bin")))


@SETTINGS
@given(CHANGES, SIZES)
def test_weights_of_any_bytes_are_refused_or_computed_with(model, weights, changes, more):
    data, memory = mutated(weights, changes, more), aligned(len(model.memory))
    opened = c_void_p()
    arguments = (byref(opened), byref(model.options), address(memory), c_size_t(len(memory)))
    status = model.lib.aicc_open(*arguments, address(data), c_size_t(len(data)))
    assert (status == 0) == (len(data) >= len(weights) and np.array_equal(data[:24], weights[:24]))
    if status == 0:
        logits = np.zeros(SHAPE.vocab, np.float32)
        assert model.lib.aicc_prefill(opened, address(np.arange(20)), 20, address(logits)) == 0
        model.lib.aicc_close(opened)


@pytest.fixture(scope="module")
def tokenizer_c() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(HERE.parents[1] / "examples" / "c" / "tokenizer.c", "portable")))
    library.tokenizer_encode.restype = ctypes.c_long
    library.tokenizer_piece.restype = library.tokenizer_chat.restype = c_void_p
    return library


@pytest.fixture(scope="module")
def tokenizer_bin() -> NDArray[np.uint8]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken("<end>", special=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    data = encode(json.loads(tokenizer.to_str()), tokenizer.get_vocab_size(), [0], ("<end>user: ", "<end>", "\n"))
    return np.frombuffer(data, np.uint8)


def test_a_tokenizer_whose_classes_contradict_its_words_comes_to_an_end(tokenizer_c, tokenizer_bin):
    data, handle, raw = mutated(tokenizer_bin, [], 0), aligned(512), b"a \tb"
    words = data[: len(data) // 4 * 4].view(np.uint32)
    vocab, merges, specials, ranges = (int(n) for n in words[4:8])
    at = 10 + 256 + 2 * vocab + 1 + 4 * merges + specials
    classes = words[at : at + 3 * ranges].reshape(ranges, 3)
    [blank] = np.flatnonzero((classes[:, 0] <= 32) & (classes[:, 1] >= 32))
    classes[blank, 2] = 0  # no white space, and what follows it is
    assert tokenizer_c.tokenizer_open(address(handle), address(data), c_size_t(len(data))) == 0
    ids = (c_int64 * (len(raw) + 1))()
    arguments = (address(handle), raw, c_size_t(len(raw)), 0, ids, c_size_t(len(ids)))
    assert 0 <= tokenizer_c.tokenizer_encode(*arguments) <= len(raw)


@SETTINGS
@given(CHANGES, SIZES, st.text(max_size=40))
def test_a_tokenizer_of_any_bytes_is_refused_or_used(tokenizer_c, tokenizer_bin, changes, more, text):
    data, handle, raw = mutated(tokenizer_bin, changes, more), aligned(512), text.encode(errors="replace")
    opened = tokenizer_c.tokenizer_open(address(handle), address(data), c_size_t(len(data)))
    assert opened in (0, -1)
    if not any(changes) and more == 0:
        assert opened == 0
    if opened:
        return
    ids, size = (c_int64 * (len(raw) + 1))(), c_size_t()
    for specials in (0, 1):
        count = tokenizer_c.tokenizer_encode(
            address(handle), raw, c_size_t(len(raw)), specials, ids, c_size_t(len(ids))
        )
        assert -3 <= count <= len(ids)
    for token in (0, 1, 399, 2**31, -1, *ids):
        piece = tokenizer_c.tokenizer_piece(address(handle), c_int64(token), byref(size))
        assert size.value == 0 or ctypes.string_at(piece, size.value) is not None
        tokenizer_c.tokenizer_stops(address(handle), c_int64(token))
    for part in range(3):
        if piece := tokenizer_c.tokenizer_chat(address(handle), part, byref(size)):
            ctypes.string_at(piece, size.value)
