"""Triton kernels in Triton's interpreter, beside ONNX's reference evaluator of the operators that they stand for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx_meaning import meaning
from tolerances import assert_within
from triton_plan import launch

from aicc.targets.triton.kernels.choose import choose
from aicc.targets.triton.kernels.decode_attention import decode_attention
from aicc.targets.triton.kernels.matmul import matmul
from aicc.targets.triton.kernels.matvec import matvec
from aicc.targets.triton.kernels.prefill_attention import prefill_attention
from aicc.targets.triton.kernels.rowwise import rowwise
from aicc.targets.triton.lowering.pack import Form, pack_integers

GENERATOR = np.random.default_rng(3)
PAGE, TABLE = 8, 8
FORMS = {
    "fp32": Form(32, "fp32", scales="fp32"),
    "fp16": Form(16, "fp16", scales="fp16"),
    "bf16": Form(16, "bf16", scales="bf16"),
    "uint4 with minima": Form(4, "u8", 0, 32, "fp16", True),
    "int4 in groups of 64": Form(4, "u8", 8, 64, "fp32"),
    "int8 by row": Form(8, "u8", 128, 96, "fp32"),
    "uint8 with minima": Form(8, "u8", 0, 32, "fp16", True),
    "float8 by row": Form(8, "u8", -1, 96, "fp32"),
}
COLUMNS = {0: 300, 32: 288, 64: 320, 96: 90}  # of matrices, by their groups; the last is a whole row


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _weights(form: Form, rows: int, k: int) -> tuple[str, dict[str, NDArray[Any]], list[torch.Tensor]]:
    """A matrix as nodes that make ``w`` of arrays, these arrays, and as the kernels read it."""
    if form.bits > 8:
        dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[form.dtype]
        stored = GENERATOR.standard_normal((rows, k)).astype(dtype)
        tensor = _tensor(stored.view(np.uint16)).view(torch.bfloat16) if form.dtype == "bf16" else _tensor(stored)
        return "w = Cast <to = 1> (stored)", {"stored": stored}, [tensor] * 3
    groups = -(-k // form.group)
    size = k // groups
    values = _integers(form, (rows, k))
    kind = np.float16 if form.scales == "fp16" else np.float32
    made = GENERATOR.standard_normal((2, rows, groups)) / (448 if form.zero < 0 else 1 << form.bits)
    scales, minima = made.astype(kind)
    nodes = f"s = Cast <to = 1> (scales)  w = DequantizeLinear <axis = 1, block_size = {size}> (values, s)"
    arrays = {"values": values, "scales": scales}
    if form.minima:
        nodes = f"""{nodes.replace("w = ", "d = ")}  m = Cast <to = 1> (minima)  u = Unsqueeze (m, last)
            g = Reshape (d, grouped)  sum = Add (g, u)  w = Reshape (sum, flat)"""
        arrays |= {"minima": minima, "last": np.array([-1])}
        arrays |= {"grouped": np.array([rows, groups, size]), "flat": np.array([rows, k])}
    stored = values if form.zero < 0 else values.astype(np.int8 if form.zero else np.uint8)
    packed = [pack_integers(stored, form), scales * kind(256 if form.zero < 0 else 1), minima]
    return nodes, arrays, [_tensor(array) for array in packed]


def _integers(form: Form, shape: tuple[int, int]) -> NDArray[Any]:
    """Values of a quantised matrix, of the type that ONNX has for them; float8 are all but NaN."""
    if form.zero < 0:
        every = np.arange(256, dtype=np.uint8)
        return GENERATOR.choice(every[(every & 0x7F) != 0x7F], shape).view(ml_dtypes.float8_e4m3fn)
    low = -(1 << form.bits - 1) if form.zero else 0
    kinds = {4: (ml_dtypes.uint4, ml_dtypes.int4), 8: (np.uint8, np.int8)}
    return GENERATOR.integers(low, low + (1 << form.bits), shape).astype(kinds[form.bits][form.zero > 0])


def _batch(tokens: int, positions: list[int] | None = None, sequences: list[int] | None = None) -> torch.Tensor:
    batch = np.zeros((tokens, 4), np.int32)
    batch[:, 1] = range(tokens) if positions is None else positions
    batch[:, 2] = 0 if sequences is None else sequences
    return _tensor(batch)


@pytest.mark.parametrize("name", FORMS)
def test_a_row_is_normalised_and_multiplied(name: str) -> None:
    form, n = FORMS[name], 20
    k = COLUMNS[form.group]
    nodes, arrays, weights = _weights(form, 2 * n, k)
    x, gain = (GENERATOR.standard_normal(k).astype(np.float32) for _ in range(2))
    found = torch.full((n,), torch.nan)
    program = (("Silu", 0), ("Mul", 1, 2), ("store", 3, 0, n))
    launch(
        matvec, (n // 4, 1, 1), (found,), _batch(1), _batch(1), _tensor(x), _tensor(gain), *weights,
        K=k, N=n, COUNT=2, FORM=form.constants, NORM=True, EPSILON=1e-5, WANTED=False, SEGMENTS=((0, n, program),),
        BLOCK_N=4, CHUNKS=4, ACROSS=form.elements_of_load,
    )  # fmt: skip
    (expected,) = meaning(
        f"""(x, gain, {", ".join(arrays)}) => (y) {{
            normalised = RMSNormalization <epsilon = 1e-5> (x, gain)
            {nodes}
            columns = Transpose (w)  p = MatMul (normalised, columns)
            gate, up = Split <axis = 0, num_outputs = 2> (p)  activated = Swish (gate)  y = Mul (activated, up)
        }}""",
        x=x, gain=gain, **arrays,
    )  # fmt: skip
    assert_within("model", found.numpy(), expected)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("splits", "bf16"), [(1, False), (3, True)])
def test_rows_are_multiplied_by_tiles_also_where_programs_share_them(name: str, splits: int, bf16: bool) -> None:
    form, n, tokens = FORMS[name], 40, 20
    k = COLUMNS[form.group]
    nodes, arrays, weights = _weights(form, n, k)
    x = _tensor(GENERATOR.standard_normal((tokens, k))).to(torch.bfloat16 if bf16 else torch.float16)
    found, residual = torch.full((tokens, n), torch.nan), GENERATOR.standard_normal((tokens, n)).astype(np.float32)
    others = torch.full((tokens, n - 25), torch.nan)
    partial, arrived = torch.full((splits * n * tokens,), torch.nan), torch.zeros(16, dtype=torch.int32)
    first, rest = (("load", 1, n), ("Add", 0, 1), ("store", 2, 0, n)), (("store", 0, 2, n - 25),)
    launch(
        matmul, (3, 2, splits), (found, _tensor(residual), others), _batch(tokens), _batch(tokens), x,
        *weights, partial, arrived, tokens, K=k, N=n, COUNT=1, FORM=form.constants,
        SEGMENTS=((0, 25, first), (25, n, rest)), SPLITS=splits, BLOCK_M=16, BLOCK_N=16, BLOCK_K=64, BF16=bf16,
    )  # fmt: skip
    left, right = meaning(
        f"""(x, residual, sizes, {", ".join(arrays)}) => (y, right) {{
            {nodes}
            rounded = Cast <to = {16 if bf16 else 10}> (w)  tiles = Cast <to = 1> (rounded)
            columns = Transpose (tiles)  p = MatMul (x, columns)
            left, right = Split <axis = 1> (p, sizes)  y = Add (left, residual)
        }}""",
        x=x.float().numpy(), residual=residual[:, :25], sizes=np.array([25, n - 25]), **arrays,
    )  # fmt: skip
    assert_within("float16 sum", found.numpy()[:, :25], left)
    assert_within("float16 sum", others.numpy(), right)
    assert not arrived.any()


def test_heads_are_normalised_rotated_and_put_into_pages() -> None:
    tokens, heads, head, rotary = 5, 3, 12, 8
    width, half = heads * head, rotary // 2
    x, gain = (GENERATOR.standard_normal(shape).astype(np.float32) for shape in ((tokens, width), head))
    angles = GENERATOR.standard_normal((2, 16, half)).astype(np.float32)
    positions, sequences = [9, 10, 0, -1, 1], [1, 1, 0, 0, 0]
    table = _tensor(np.array([[3, 0], [2, 1]], np.int32))
    cache, rotated = torch.zeros((4, heads, PAGE, head), dtype=torch.float16), torch.full((tokens, width), torch.nan)
    program = (
        ("load", 0, width), ("vector", 1, head), ("Norm", 0, head, False, 1, -1, 1e-6), ("Rope", 2, 2, head, half, 16),
        ("store", 3, 3, width), ("cache", 3, 4, heads, head, PAGE, 2),
    )  # fmt: skip
    pointers = (_tensor(x), _tensor(gain), _tensor(angles), rotated, cache)
    launch(
        rowwise, (tokens, heads, 1), pointers, _batch(tokens, positions, sequences), table,
        WIDTH=head, SEGMENTS=((0, heads, program),), BLOCK=16,
    )  # fmt: skip
    (turned,) = meaning(
        f"""(x, gain, cosine, sine, positions, whole) => (y) {{
            n = RMSNormalization <axis = -1, epsilon = 1e-6> (x, gain)
            rows = Reshape (n, whole)
            y = RotaryEmbedding <interleaved = 1, num_heads = {heads}, rotary_embedding_dim = {rotary}>
                (rows, cosine, sine, positions)
        }}""",
        x=x.reshape(1, tokens, heads, head), gain=gain, cosine=angles[0], sine=angles[1],
        positions=np.maximum([positions], 0), whole=np.array([1, tokens, width]),
    )  # fmt: skip
    assert_within("model", rotated.numpy(), turned[0])
    pieces = turned.reshape(tokens, heads, head)
    expected = np.zeros(cache.shape, np.float16)
    for token, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        if position >= 0:
            expected[table[sequence, position // PAGE], :, position % PAGE] = pieces[token]
    assert_within("float16", cache.numpy(), expected)


def test_the_first_of_the_largest_logits_is_chosen_and_what_is_no_number_is_seen() -> None:
    logits = GENERATOR.integers(-9, 9, (4, 300)).astype(np.float32)
    logits[0, [70, 299]] = 50
    logits[1, 7] = -np.inf
    logits[2, 130] = np.nan
    logits[3] = -np.inf
    found = torch.full((4, 2), -1, dtype=torch.int32)
    launch(choose, (4, 1, 1), _tensor(logits), found, VOCAB=300, BLOCK=64)
    tokens, highest = found.numpy()[:, 0], found.numpy()[:, 1].copy().view(np.float32)
    best, most = meaning(
        "(x, last) => (best, most) { best = ArgMax <axis = 1, keepdims = 0> (x)"
        "  most = ReduceMax <keepdims = 0> (x, last) }",
        x=logits, last=np.array([1]),
    )  # fmt: skip
    assert tokens[[0, 1, 3]].tolist() == best[[0, 1, 3]].tolist()
    assert np.array_equal(highest, most, equal_nan=True)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 50), st.integers(1, 12), st.sampled_from([0, 5, 20]), st.sampled_from([0.0, 3.0]))
def test_queries_see_what_is_before_them_in_their_pages(past: int, new: int, window: int, cap: float) -> None:
    heads, kv_heads, head = 4, 2, 24
    generator = np.random.default_rng(past)
    length = past + new
    k, v = (generator.standard_normal((length, kv_heads, head)).astype(np.float16) for _ in range(2))
    table = generator.permutation(TABLE).astype(np.int32)[None]
    pages = np.full((2, TABLE, kv_heads, PAGE, head), 7, np.float16)
    for position in range(length):
        pages[0, table[0, position // PAGE], :, position % PAGE] = k[position]
        pages[1, table[0, position // PAGE], :, position % PAGE] = v[position]
    q = generator.standard_normal((new, heads, head)).astype(np.float16)
    of = lambda array: array.astype(np.float32).swapaxes(0, 1)[None]  # noqa: E731
    seen = np.arange(length) > np.arange(past, length)[:, None] - (window or length)
    (found,) = meaning(
        f"(q, k, v, seen, k0, v0) => (y) {{ y = Attention <is_causal = 1, softcap = {cap}> (q, k, v, seen, k0, v0) }}",
        q=of(q), k=of(k[past:]), v=of(v[past:]), seen=seen, k0=of(k[:past]), v0=of(v[:past]),
    )  # fmt: skip
    expected = found[0].swapaxes(0, 1)
    constants = {
        "HEADS": heads, "KV_HEADS": kv_heads, "HEAD": head, "SCALE": head**-0.5, "SOFT_CAP": cap, "WINDOW": window,
        "PAGE": PAGE, "TABLE": TABLE, "BLOCK_D": 32, "BLOCK_N": 16,
    }  # fmt: skip
    given_ = (_tensor(q), _tensor(pages[0]), _tensor(pages[1]), _batch(new, list(range(past, length))), _tensor(table))
    one, other = torch.full(q.shape, torch.nan), torch.full(q.shape, torch.nan)
    partial, arrived = torch.full((new * kv_heads * 3 * 16 * 34,), torch.nan), torch.zeros(32, dtype=torch.int32)
    launch(decode_attention, (new, kv_heads, 3), *given_, one, partial, arrived, **constants, SPLITS=3, BLOCK_H=16)
    tiles = _tensor(np.array([(i, min(i + 8, new)) for i in range(0, new, 8)], np.int32))
    launch(prefill_attention, (len(tiles), heads, 1), *given_, tiles, other, **constants, BLOCK_M=8)
    assert_within("float16", one.numpy(), expected)
    assert_within("float16", other.numpy(), expected)
    assert not arrived.any()
