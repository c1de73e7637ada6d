"""A model of a published shape whose weights are nowhere: plans and kernels are made from shapes alone.

How fast a decoder is depends on its shapes and formats and not on its weights, as long as those are ordinary numbers.
So its folder has a header, and zeros that take no room on the disk; its weights are compiled to a list of streams, each
of a kind; and bytes of a kind are made from a small pattern of random ones while they go to the device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import make_model
import ml_dtypes
import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from aicc.compiler.coverage import weight_bytes_per_token
from aicc.compiler.importers import Source, import_model
from aicc.compiler.optimize import optimize
from aicc.compiler.quantization.policy import Quant, quantize
from aicc.compiler.rows import row_builder
from aicc.compiler.rows.matrix import Matrix
from aicc.compiler.rows.program import Linear, Program
from aicc.runtime.target import find_target
from aicc.targets.triton.plan import PLAN_FILE, WEIGHTS, Argument, Plan

ALIGNMENT = 64  # of streams, as in an artifact
SHAPED_FILE, CONSTANTS_FILE = "shaped.json", "constants.bin"
_PATTERN = 1 << 20  # elements of a pattern
_SPREAD = 0.02  # standard deviation of weights, as models are initialised with


class Stream(msgspec.Struct, frozen=True):
    """A part of the weights: one of :data:`KINDS` repeated, or ``constants`` as they are."""

    kind: str
    offset: int
    bytes: int


class Shaped(msgspec.Struct, frozen=True):
    """What is known of a compiled shape besides its plan.

    Attributes:
        quantization: In words, as a manifest has it.
        weight_bytes_per_token: Weights read to decode one token.
        layers: Elements of the matrices that every token of a prompt is multiplied with.
        head: Elements of the output projection, which only the last of them is multiplied with.
        streams: The weights, in order of their offsets.
    """

    quantization: str
    weight_bytes_per_token: int
    layers: int
    head: int
    streams: tuple[Stream, ...]


def write_outline(shape: str, folder: Path) -> None:
    """A Hugging Face folder of a shape: config, and a weights file of ones for vectors and holes for matrices.

    Args:
        shape: One of :data:`make_model.SHAPES`.
        folder: Where they go.
    """
    model_type, options = make_model.SHAPES[shape]
    config = transformers.AutoConfig.for_model(model_type, **options)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        for name, tensor in tensors.items():
            if tensor.ndim == 1:
                file.seek(begin + header[name]["data_offsets"][0])
                file.write(np.ones(tensor.numel(), ml_dtypes.bfloat16).tobytes())
        file.truncate(begin + end)


def compile_shape(outline: Path, target: str, quant: Quant, folder: Path) -> None:
    """Write plan, kernels and streams of a shape; no matrix is read.

    Args:
        outline: What :func:`write_outline` wrote.
        target: Of the triton family.
        quant: Format of the weights.
        folder: Where they go.
    """
    from aicc.targets.triton.lowering import make_plan
    from aicc.targets.triton.lowering.binaries import CHIPS, Binaries
    from aicc.targets.triton.lowering.pack import Form, Order, Packed, Packer, matrix_form

    class ShapePacker(Packer):
        """Places matrices by their sizes, and reads vectors and tables of angles, which are small."""

        def matrices(self, matrices: Sequence[Matrix], orders: Sequence[Order]) -> Packed:
            key = tuple(matrices)
            if key not in self._matrices:
                form = matrix_form(matrices[0])
                rows = sum(matrix.rows for matrix in matrices)
                kinds = stream_bytes(form, rows, matrices[0].columns)
                placed = [Argument(WEIGHTS, store.place(kind, size)) for kind, size in kinds]
                self.end = max(self.end, store.end)
                self._matrices[key] = Packed(form, *(*placed, *placed[:1] * 3)[:3])
            return self._matrices[key]

    def stream_bytes(form: Form, rows: int, columns: int) -> list[tuple[str, int]]:
        if form.bits > 8:
            return [(form.dtype, rows * columns * form.bits // 8)]
        padded = -(-columns // 32) * 32
        width = {"fp16": 2, "fp32": 4}[form.scales]
        kind = "fp8" if form.zero < 0 else f"int{form.bits}"
        found = [(kind, rows * padded * form.bits // 8), (f"{kind} {form.scales}", rows * padded // form.group * width)]
        return found + ([(f"{kind} minima", found[1][1])] if form.minima else [])

    chosen = find_target(target)
    imported = import_model(Source(outline, "huggingface", outline.name), digest=False)
    optimize(imported, chosen)
    described = quantize(imported, chosen, quant, None)
    program = row_builder(imported, chosen.family, 1).build()
    layers, head = _multiplied(program)
    store = _Store()
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(program, Binaries(CHIPS[chosen.variant], folder), ShapePacker(store))
    shaped = Shaped(described, weight_bytes_per_token(imported.graph), layers, head, tuple(store.streams))
    (folder / CONSTANTS_FILE).write_bytes(store.constants)
    (folder / PLAN_FILE).write_bytes(msgspec.json.encode(plan))
    (folder / SHAPED_FILE).write_bytes(msgspec.json.encode(shaped))  # last: it says that all is there


def _multiplied(program: Program) -> tuple[int, int]:
    """Elements of the matrices of layers, and of the output projection."""
    sizes = [op.matrix.rows * op.matrix.columns for op in program.ops if isinstance(op, Linear)]
    return sum(sizes[:-1]), sizes[-1]


class _Store:
    """Where constants and streams lie in a weights file that is never written."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.constants = b""
        self.end = 0

    def place(self, kind: str, size: int) -> int:
        offset = self.end
        self.streams.append(Stream(kind, offset, size))
        self.end = offset + -(-size // ALIGNMENT) * ALIGNMENT
        return offset

    def add(self, data: bytes | memoryview) -> int:
        """A constant; see :class:`aicc.compiler.lowering.WeightStore`."""
        self.constants += bytes(data)
        return self.place("constants", len(data))


@dataclass(slots=True)
class StreamedWeights:
    """A weights file that exists a slice at a time, as :class:`aicc.targets.triton.executable.OpenPlan` reads it."""

    streams: tuple[Stream, ...]
    constants: bytes
    patterns: dict[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        last = self.streams[-1]
        return last.offset + last.bytes

    def __getitem__(self, part: slice) -> memoryview:
        begin, end, _ = part.indices(len(self))
        made, before = np.zeros(end - begin, np.uint8), 0
        for stream in self.streams:
            first, last = max(begin, stream.offset), min(end, stream.offset + stream.bytes)
            if first < last:
                at, size = first - stream.offset, last - first
                if stream.kind == "constants":
                    piece = np.frombuffer(self.constants, np.uint8, size, before + at)
                else:
                    pattern = self.patterns[stream.kind]
                    piece = np.resize(np.roll(pattern, -(at % len(pattern))), size)
                made[first - begin : last - begin] = piece
            before += stream.bytes if stream.kind == "constants" else 0
        return memoryview(made)


def read_shaped(folder: Path) -> tuple[Shaped, Plan, StreamedWeights]:
    """What :func:`compile_shape` wrote, with random weights."""
    shaped = msgspec.json.decode((folder / SHAPED_FILE).read_bytes(), type=Shaped)
    plan = msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Plan)
    random = np.random.default_rng(0)
    patterns = {kind: KINDS[kind](random) for kind in {s.kind for s in shaped.streams} - {"constants"}}
    return shaped, plan, StreamedWeights(shaped.streams, (folder / CONSTANTS_FILE).read_bytes(), patterns)


def _normal(random: np.random.Generator, spread: float, dtype: object) -> NDArray[np.uint8]:
    return (random.standard_normal(_PATTERN, np.float32) * np.float32(spread)).astype(dtype).view(np.uint8)


def _scales(random: np.random.Generator, of: float, dtype: type) -> NDArray[np.uint8]:
    """Scales by which integers or float8 with a spread of ``of`` become weights."""
    return (random.uniform(0.8, 1.2, _PATTERN) * (_SPREAD / of)).astype(dtype).view(np.uint8)


# The bytes of each kind of stream. Integers of 4 bits are uniform, those of 8 bits normal around 128; float8 are stored
# with 2^-8 in their scales (targets/triton/kernels/weights.py); a minimum of 4 bits puts their middle at 0.
KINDS: dict[str, Callable[[np.random.Generator], NDArray[np.uint8]]] = {
    "fp32": lambda r: _normal(r, _SPREAD, np.float32),
    "fp16": lambda r: _normal(r, _SPREAD, np.float16),
    "bf16": lambda r: _normal(r, _SPREAD, ml_dtypes.bfloat16),
    "fp8": lambda r: _normal(r, 60, ml_dtypes.float8_e4m3fn),  # none is above its largest, 448
    "fp8 fp32": lambda r: _scales(r, 60 / 256, np.float32),
    "int8": lambda r: (r.standard_normal(_PATTERN, np.float32) * 32 + 128).clip(1, 255).astype(np.uint8),
    "int8 fp16": lambda r: _scales(r, 32, np.float16),
    "int4": lambda r: r.integers(0, 256, _PATTERN, np.uint8),
    "int4 fp16": lambda r: np.full(_PATTERN, _SPREAD / 4.6, np.float16).view(np.uint8),
    "int4 minima": lambda r: np.full(_PATTERN, -7.5 * _SPREAD / 4.6, np.float16).view(np.uint8),
}
