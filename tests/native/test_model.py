"""A whole decoder through the C interface: its numbers, its independence of batches and threads, its refusals."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_int32, c_size_t, c_void_p

import numpy as np
import pytest
from native_build import HERE_ONLY, ISAS
from native_model import Batch, Model, ModelError, Options, Shape, address, aligned, example, mapped

SHAPE = Shape()
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, SHAPE.vocab, 300)]
ARGUMENT, MEMORY, WEIGHTS, FILE, TOKEN, BATCH, PAGES, CONTEXT, KIND = 1, 2, 3, 4, 6, 7, 8, 9, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module", params=HERE_ONLY)
def isa(request) -> str:
    if missing := ISAS[request.param].missing():
        pytest.skip(f"this machine cannot run {request.param}: {missing}")
    return request.param


@pytest.fixture
def model(isa, folder):
    model = example(folder, isa, SHAPE, threads=2)
    yield model
    model.close()


def test_logits_are_those_of_the_same_decoder_in_numpy(model, folder):
    want = numpy_decoder(folder / f"weights-{model.description.weights_bytes}.bin", TOKENS[:40])
    got = model.forward([(0, [3, 1, 2], TOKENS[:40])])
    # The activations are 8 bits and the reference's are not.
    errors = np.abs(got - want).max(1) / np.abs(want).max(1)
    assert errors.max() < 0.06
    assert np.median(errors) < 0.03


def test_every_instruction_set_gives_the_portable_logits(isa, model, folder):
    portable = example(folder, "portable", SHAPE)
    want, got = (m.forward([(0, [0, 1, 2], TOKENS[:40])]) for m in (portable, model))
    portable.close()
    # Where rounding differs, an activation may quantise to the next integer.
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(isa, folder):
    pages, others = list(range(20)), [[40, 41], [50, 51]]
    alone = example(folder, isa, SHAPE, threads=1)
    want = np.concatenate([alone.forward([(i, pages, TOKENS[i : i + 50])]) for i in range(0, 300, 50)])
    alone.close()
    for threads in (1, 2, 3):
        model = example(folder, isa, SHAPE, threads=threads)
        done = 0
        for count in (1, 2, 33, 60, 5, 7, 17, 1, 1, 1, 52, 1, 40, 1, 1):
            batch = [
                (0, others[0], TOKENS[:3]),
                (done, pages, TOKENS[done : done + count]),
                (0, others[1], TOKENS[9:10]),
            ]
            got = model.forward(batch)[3:-1]
            assert got.tobytes() == want[done : done + count].tobytes(), (threads, done)
            done += count
        for row in range(done, 300):
            assert model.forward([(row, pages, [TOKENS[row]])]).tobytes() == want[row : row + 1].tobytes()
        model.close()


def test_the_convenience_calls_are_forward_on_pages_in_order(model):
    want = model.forward([(0, [90, 91, 92, 93], TOKENS[:64])])[-1]
    want_next = model.forward([(64, [90, 91, 92, 93, 94], TOKENS[64:65])])[0]
    for _ in range(2):  # after a reset, again
        assert model.add(np.array(TOKENS[:64])).tobytes() == want.tobytes()
        assert model.add(np.array(TOKENS[64:65])).tobytes() == want_next.tobytes()
        model.reset()


def test_two_models_of_one_library_do_not_know_of_each_other(isa, folder):
    first, second = (example(folder, isa, SHAPE, threads=2) for _ in range(2))
    first.add(np.array(TOKENS[:10]))
    second.add(np.array(TOKENS[50:80]))
    want = second.add(np.array(TOKENS[:1]))
    first.close()
    second.reset()
    second.add(np.array(TOKENS[50:80]))
    assert second.add(np.array(TOKENS[:1])).tobytes() == want.tobytes()
    second.close()


BAD_BATCHES = {
    "a token of the next vocabulary": ([(0, [0], [100])], TOKEN),
    "a negative token": ([(0, [0], [-1])], TOKEN),
    "a page outside the pool": ([(0, [128], [1])], PAGES),
    "a negative page": ([(0, [-1], [1])], PAGES),
    "too few pages": ([(15, [0], [1, 2])], PAGES),
    "no pages": ([(0, [], [1])], PAGES),
    "more than the context": ([(1024, list(range(65)), [1])], CONTEXT),
    "a past that overflows": ([(2**31 - 1, [0], [1])], CONTEXT),
    "a negative past": ([(-1, [0], [1])], BATCH),
    "a sequence that adds nothing": ([(0, [0], [1]), (0, [1], [])], BATCH),
    "too many tokens": ([(0, list(range(5)), [1] * 65)], BATCH),
    "too many sequences": ([(0, [i], [1]) for i in range(17)], BATCH),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_bad_batch_is_refused_with_its_reason(model, name):
    sequences, status = BAD_BATCHES[name]
    with pytest.raises(ModelError) as error:
        model.forward(sequences)
    assert error.value.status == status
    assert model.forward([(0, [0], [1])]).shape == (1, SHAPE.vocab), "and the model goes on working"


@pytest.mark.parametrize("starts", [[1, 2], [0, 3], [0, -(2**31), 2], [0, 2**31 - 1, 2], [0, 2, 2]])
def test_starts_that_do_not_rise_from_zero_to_the_end_are_refused(model, starts):
    assert forward_raw(model, starts=starts) == BATCH
    assert forward_raw(model, page_starts=starts) in (BATCH, PAGES)
    assert forward_raw(model, logit_rows=[2]) == BATCH
    assert forward_raw(model, logit_rows=[-1]) == BATCH


def forward_raw(model: Model, **changed: list[int]) -> int:
    """aicc_forward with a batch of two tokens in one sequence, or as many as `starts` says, some arrays changed."""
    count = max(len(changed.get("starts", [0, 2])), len(changed.get("page_starts", [0, 2]))) - 1
    sound = {"starts": [0, 2] if count == 1 else [0, 1, 2], "past": [0] * count, "pages": [0, 1]}
    sound |= {"page_starts": [0, 2] if count == 1 else [0, 1, 2], "logit_rows": [0]} | changed
    arrays = {name: np.array(values, np.int32) for name, values in sound.items()}
    tokens, logits = np.array([1, 2]), np.empty((2, SHAPE.vocab), np.float32)
    order = (arrays[name] for name in ("starts", "past", "pages", "page_starts", "logit_rows"))
    batch = Batch(count, 2, 2, 1, address(tokens), *map(address, order))
    return model.lib.aicc_forward(model.handle, byref(batch), address(logits))


def test_opening_checks_memory_and_weights(model, folder, tmp_path):
    lib, size = model.lib, len(model.memory)
    path = folder / f"weights-{model.description.weights_bytes}.bin"
    weights, memory = mapped(path), aligned(size + 64)

    def opened(
        memory_at: int = 0, memory_size: int = size, data=weights, length: int | None = None, options=model.options
    ):
        handle = c_void_p()
        place = c_void_p(memory.ctypes.data + memory_at)
        length = len(data) if length is None else length
        status = lib.aicc_open(
            byref(handle), byref(options), place, c_size_t(memory_size), address(data), c_size_t(length)
        )
        if status == 0:
            lib.aicc_close(handle)
        return status

    assert opened() == 0
    assert opened(memory_at=8) == MEMORY
    assert opened(memory_size=size - 1) == MEMORY
    assert opened(length=len(weights) - 1) == WEIGHTS
    assert opened(length=0) == WEIGHTS
    assert (
        opened(options=Options(-1, 4)) == opened(options=Options(1, 0)) == opened(options=Options(257, 4)) == ARGUMENT
    )
    assert lib.aicc_memory_size(byref(Options(1, -5))) == 0
    for offset in range(24):
        changed = aligned(len(weights))
        changed[:] = weights
        changed[offset] ^= 1
        assert opened(data=changed) == WEIGHTS, offset
    assert lib.aicc_open(None, None, None, c_size_t(0), None, c_size_t(0)) == ARGUMENT
    handle = c_void_p()
    arguments = (byref(handle), byref(model.options), address(memory), c_size_t(size))
    assert lib.aicc_open_file(*arguments, c_char_p(bytes(tmp_path / "absent"))) == FILE
    (tmp_path / "empty").touch()
    assert lib.aicc_open_file(*arguments, c_char_p(bytes(tmp_path / "empty"))) == FILE


def test_null_pointers_and_the_wrong_kind_of_call_are_errors(model):
    lib = model.lib
    assert lib.aicc_forward(None, None, None) == lib.aicc_forward(model.handle, None, None) == ARGUMENT
    assert lib.aicc_prefill(model.handle, None, c_int32(1), None) == ARGUMENT
    assert lib.aicc_run(model.handle, c_int32(0), None, None) == KIND
    lib.aicc_reset(None)
    lib.aicc_close(None)
    assert all(lib.aicc_error_text(status) for status in range(-1, 14))


def numpy_decoder(path, tokens: list[int]) -> np.ndarray:
    """decoder_example.c in float64, from its weights file."""
    s, data, at = SHAPE, mapped(path), 64

    def take(count: int, dtype=np.float32) -> np.ndarray:
        nonlocal at
        values = data[at : at + count * np.dtype(dtype).itemsize].view(dtype)
        at += values.nbytes
        return values

    def weight(outputs: int, k: int, bits: int) -> np.ndarray:
        rows = []
        for _ in range(-(-outputs // 16)):
            values = take(k * 2 * bits, np.uint8)
            scale, zero = (
                take(-(-k // 32 * 32 // 64) * 32, np.float16)[: k // 2].reshape(-1, 16),
                128.0 if bits == 8 else 0,
            )
            if bits == 4:
                halves = values.reshape(k // 32, 4, 16, 4)
                values = np.concatenate([halves & 15, halves >> 4], 1)
                low = take(-(-k // 32 * 32 // 64) * 32, np.float16)[: k // 2].reshape(-1, 16)
            q = values.reshape(k // 4, 16, 4).transpose(1, 0, 2).reshape(16, k // 32, 32).astype(float) - zero
            q = q * scale.T[:, :, None].astype(float) + (low.T[:, :, None].astype(float) if bits == 4 else 0)
            rows.append(q.reshape(16, k))
        return np.concatenate(rows)[:outputs]

    def norm(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w

    half = s.head // 2
    cosine, sine = take(s.context * half).reshape(-1, half), take(s.context * half).reshape(-1, half)
    vocabulary, final = weight(s.vocab, s.hidden, 8), take(s.hidden)
    x, count = vocabulary[tokens], len(tokens)
    mask = np.where(np.tri(count, dtype=bool), 0, -np.inf)
    for _ in range(s.layers):
        norms = take(s.hidden), take(s.hidden)
        qkv = weight((s.heads + 2 * s.kv_heads) * s.head, s.hidden, 4)
        out, gate, up = weight(s.hidden, s.heads * s.head, 4), weight(s.ffn, s.hidden, 4), weight(s.ffn, s.hidden, 4)
        down = weight(s.hidden, s.ffn, 4)
        q, k, v = np.split((norm(x, norms[0]) @ qkv.T).reshape(count, -1, s.head), [s.heads, s.heads + s.kv_heads], 1)
        turned = []
        for heads in (q, k):
            spun = (heads[..., :half] + 1j * heads[..., half:]) * (cosine + 1j * sine)[:count, None]
            turned.append(np.concatenate([spun.real, spun.imag], -1))
        q, k, v = turned[0], *(np.repeat(h, s.heads // s.kv_heads, 1) for h in (turned[1], v))
        scores = np.exp(np.einsum("ihd,jhd->hij", q, k) * 0.125 + mask)
        mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(count, -1)
        x = x + mixed @ out.T
        y = norm(x, norms[1])
        g = y @ gate.T
        x = x + (g / (1 + np.exp(-g)) * (y @ up.T)) @ down.T
    assert at == len(data)
    return norm(x, final) @ vocabulary.T
