"""The C interface through ctypes, and decoder_example.c with weights of random values."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from native_build import HERE, build
from numpy.typing import NDArray

EXAMPLE = HERE / "decoder_example.c"


class Description(Structure):
    _fields_ = (
        *(("abi_version", c_uint32), ("kind", c_int32), ("name", c_char_p), ("isa", c_char_p)),
        *(("weights_bytes", c_uint64), ("weights_id", c_uint64), ("vocab_size", c_int32), ("context_length", c_int32)),
        *(("layer_count", c_int32), ("page_tokens", c_int32), ("page_bytes", c_uint64), ("max_batch_tokens", c_int32)),
        *(
            ("max_batch_sequences", c_int32),
            ("prompts_apart", c_int32),
            ("signature_count", c_int32),
            ("signatures", c_void_p),
        ),
    )


class Options(Structure):
    _fields_ = (("threads", c_int32), ("pages", c_int32))


class Batch(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("sequences", "token_count", "page_count", "logit_count")),
        *((name, c_void_p) for name in ("tokens", "starts", "past", "pages", "page_starts", "logit_rows")),
        ("first_prompt", c_int32),
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of decoder_example.c."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    ffn: int = 128
    vocab: int = 100
    context: int = 1024
    max_tokens: int = 64
    group: int = field(default=32, init=False)

    def defines(self) -> tuple[str, ...]:
        names = ("hidden", "layers", "heads", "kv_heads", "head", "ffn", "vocab", "context", "max_tokens")
        return tuple(f"{name.upper()}={getattr(self, name)}" for name in names)


SMOLLM2_135M = Shape(576, 30, 9, 3, 64, 1536, 49152, 2048, 256)


def library(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    lib.aicc_describe.restype = POINTER(Description)
    lib.aicc_memory_size.restype = c_size_t
    lib.aicc_error_text.restype = c_char_p
    return lib


def library_of_limits(path: Path) -> ctypes.CDLL:
    """benchmarks/native/limits.c."""
    lib = ctypes.CDLL(str(path))
    lib.read_rate.restype = lib.int8_rate.restype = c_double
    return lib


def aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, not touched."""
    memory = np.empty(size + 64, np.uint8)
    offset = -memory.ctypes.data % 64
    return memory[offset : offset + size]


class Address(c_void_p):
    """Where an array is, and the array."""

    array: NDArray


def address(array: NDArray) -> Address:
    assert array.flags.c_contiguous
    pointer = Address(array.ctypes.data)
    pointer.array = array
    return pointer


def random_weights(path: Path, shape: Shape, size: int, identity: int, seed: int = 0) -> None:
    """A weights file of decoder_example.c: values a model could have, so that nothing overflows."""
    random = np.random.default_rng(seed)
    group = shape.group

    def panels(outputs: int, inputs: int, bits: int) -> bytes:
        count, groups = -(-outputs // 16), inputs // group
        half_bytes = -(-groups * 32 // 64) * 64
        scale = np.float16(1.0 / (np.sqrt(inputs) * (4.6 if bits == 4 else 74)))
        streams = np.zeros((count, inputs * 2 * bits + half_bytes * (2 if bits == 4 else 1)), np.uint8)
        streams[:, : inputs * 2 * bits] = random.integers(0, 256, (count, inputs * 2 * bits), np.uint8)
        halves = streams[:, inputs * 2 * bits :].view(np.float16)
        halves[:, : groups * 16] = scale
        if bits == 4:
            halves[:, half_bytes // 2 : half_bytes // 2 + groups * 16] = np.float16(-7.5) * scale
        return streams.tobytes()

    def norm() -> bytes:
        return random.uniform(0.5, 1.5, shape.hidden).astype(np.float32).tobytes()

    angles = np.outer(np.arange(shape.context), 10000.0 ** (-np.arange(shape.head // 2) * 2 / shape.head))
    header = b"AICCWTS1" + np.array([0, identity], np.uint64).tobytes() + bytes(40)
    width, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    with path.open("wb") as file:
        file.write(header)
        file.write(np.cos(angles).astype(np.float32).tobytes() + np.sin(angles).astype(np.float32).tobytes())
        file.write(panels(shape.vocab, shape.hidden, 8) + norm())
        for _ in range(shape.layers):
            file.write(norm() + norm() + panels(width + 2 * kv, shape.hidden, 4) + panels(shape.hidden, width, 4))
            file.write(panels(2 * shape.ffn, shape.hidden, 4) + panels(shape.hidden, shape.ffn, 4))
    assert path.stat().st_size == size, (path.stat().st_size, size)


class ModelError(Exception):
    """A status other than AICC_OK; `status` is the number."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Model:
    """An open model. `forward` takes sequences as (past, pages, tokens) and gives logits of all rows."""

    def __init__(self, path: Path, weights: Path, threads: int = 1, pages: int = 128):
        self.lib = library(path)
        self.description = self.lib.aicc_describe().contents
        self.options = Options(threads, pages)
        self.memory = aligned(self.lib.aicc_memory_size(byref(self.options)))
        self.handle = c_void_p()
        size = c_size_t(len(self.memory))
        arguments = (byref(self.handle), byref(self.options), address(self.memory), size, str(weights).encode())
        self.check(self.lib.aicc_open_file(*arguments))

    def check(self, status: int) -> None:
        if status:
            raise ModelError(status, self.lib.aicc_error_text(status).decode())

    def forward(self, sequences: list[tuple[int, list[int], list[int]]]) -> NDArray[np.float32]:
        def ints(values: list[int]) -> NDArray[np.int32]:
            return np.array(values, np.int32)

        counts = [len(tokens) for _, _, tokens in sequences]
        arrays = {
            "tokens": np.array([token for *_, tokens in sequences for token in tokens], np.int64),
            "starts": ints([0, *np.cumsum(counts)]),
            "past": ints([past for past, _, _ in sequences]),
            "pages": ints([page for _, pages, _ in sequences for page in pages]),
            "page_starts": ints([0, *np.cumsum([len(pages) for _, pages, _ in sequences])]),
            "logit_rows": ints(list(range(sum(counts)))),
        }
        batch = Batch(len(sequences), sum(counts), len(arrays["pages"]), sum(counts), *map(address, arrays.values()))
        logits = np.full((sum(counts), self.description.vocab_size), np.nan, np.float32)
        self.check(self.lib.aicc_forward(self.handle, byref(batch), address(logits)))
        return logits

    def add(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after adding tokens to the model's own sequence."""
        logits = np.full(self.description.vocab_size, np.nan, np.float32)
        tokens = np.ascontiguousarray(tokens, np.int64)
        self.check(self.lib.aicc_prefill(self.handle, address(tokens), c_int32(len(tokens)), address(logits)))
        return logits

    def reset(self) -> None:
        self.lib.aicc_reset(self.handle)

    def close(self) -> None:
        self.lib.aicc_close(self.handle)


def example(folder: Path, isa: str, shape: Shape, threads: int = 1, pages: int = 128) -> Model:
    """decoder_example.c, compiled and opened; weights are written to the folder once."""
    path = build(EXAMPLE, isa, shape.defines())
    facts = library(path).aicc_describe().contents
    weights = folder / f"weights-{facts.weights_bytes}.bin"
    if not weights.exists():
        random_weights(weights, shape, facts.weights_bytes, facts.weights_id)
    return Model(path, weights, threads, pages)


def mapped(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
