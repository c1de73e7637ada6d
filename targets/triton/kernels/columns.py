"""What happens to results where they are computed: a program of constants, unrolled by the compiler.

Each operation is a tuple that begins with its name and appends one value (or stores one). Operands
are numbers of earlier values; pointers are numbers into a tuple.

    (number, x)                                   a constant
    (load, pointer, width)                        of a value ``[rows, width]``
    (wanted, pointer, width)                      the same, of the row whose logits are wanted
    (vector, pointer, size)                       a constant row, or what each head has in its place
    (embed, pointer, scales, minima, width, BITS, ZERO, GROUP, by position)
    (Add, a, b) ... (Gelu, a)                     functions, by their ONNX names
    (Norm, x, size, layer, weight, bias, epsilon) of all columns at hand; -1 where there is no weight or bias
    (Rope, x, pointer, head, half, positions)     of neighbours in pairs
    (store, x, pointer, width)
    (cache, x, pointer, heads, head, page, table) into a sequence's page
"""

from __future__ import annotations

import triton
import triton.language as tl

from aicc.targets.triton import plan
from aicc.targets.triton.kernels.weights import unpack

FIELDS = tl.constexpr(plan.FIELDS)


@triton.jit
def position_of(batch, row):
    """Of a token in its sequence; -1 if it is only there to fill a step up."""
    return tl.load(batch + row * FIELDS + 1)


@triton.jit
def wanted_row(batch, number):
    """The row whose logits are wanted as the n-th."""
    return tl.load(batch + number * FIELDS + 3)


@triton.jit
def tanh(x):
    """In float32; exact at both ends, where the exponential overflows or vanishes."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def call(NAME: tl.constexpr, a, b):
    """A function by its name; ``b`` is ``a`` again where it takes one argument."""
    if NAME == "Add":
        result = a + b
    elif NAME == "Sub":
        result = a - b
    elif NAME == "Mul":
        result = a * b
    elif NAME == "Div":
        result = a / b
    elif NAME == "Neg":
        result = -a
    elif NAME == "Exp":
        result = tl.exp(a)
    elif NAME == "Relu":
        result = tl.maximum(a, 0.0)
    elif NAME == "Sigmoid":
        result = 1.0 / (1.0 + tl.exp(-a))
    elif NAME == "Silu":
        result = a / (1.0 + tl.exp(-a))
    elif NAME == "Tanh":
        result = tanh(a)
    elif NAME == "Erf":
        result = tl.erf(a)
    elif NAME == "Gelu":
        result = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        tl.static_assert(NAME == "GeluTanh")
        result = 0.5 * a * (1.0 + tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))
    return result


@triton.jit
def normalise(x, mask, SIZE: tl.constexpr, LAYER: tl.constexpr, EPSILON: tl.constexpr):
    """All of ``x`` as one piece; columns outside of the mask do not count."""
    x = tl.where(mask, x, 0.0)
    if LAYER:
        x = tl.where(mask, x - tl.sum(x, axis=0) / SIZE, 0.0)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + EPSILON)


@triton.jit
def rotate(x, cols, angles, position, HEAD: tl.constexpr, HALF: tl.constexpr, POSITIONS: tl.constexpr):
    """Neighbouring columns as pairs, turned by the angle of their place in the head."""
    n: tl.constexpr = x.shape[0]
    first, second = tl.split(tl.reshape(x, [n // 2, 2]))
    even, _ = tl.split(tl.reshape(cols, [n // 2, 2]))
    pair = even % HEAD // 2
    at = angles + tl.maximum(position, 0) * HALF + pair
    cosine = tl.load(at, mask=pair < HALF, other=1.0)
    sine = tl.load(at + POSITIONS * HALF, mask=pair < HALF, other=0.0)
    return tl.reshape(tl.join(first * cosine - second * sine, first * sine + second * cosine), [n])


@triton.jit
def embed(values, scales, minima, row, cols, mask, OP: tl.constexpr):
    """Columns of a row of a table in a matrix's form."""
    WIDTH: tl.constexpr = OP[4]
    BITS: tl.constexpr = OP[5]
    GROUP: tl.constexpr = OP[7]
    padded: tl.constexpr = (WIDTH + 31) // 32 * 32 if BITS <= 8 else WIDTH
    row = row.to(tl.int64)
    if BITS == 4:
        byte = tl.load(values + row * (padded // 2) + cols // 32 * 16 + cols % 16, mask=mask, other=0)
        x = unpack(byte >> (cols % 32 // 16 * 4).to(tl.uint8) & 15, OP[6])
    elif BITS == 8:
        x = unpack(tl.load(values + row * padded + cols, mask=mask, other=0), OP[6])
    else:
        x = tl.load(values + row * padded + cols, mask=mask, other=0.0).to(tl.float32)
    if BITS <= 8:
        group = row * (padded // GROUP) + cols // GROUP
        x *= tl.load(scales + group, mask=mask, other=0.0).to(tl.float32)
        if OP[3] >= 0:
            x += tl.load(minima + group, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def put_in_cache(x, cache, batch, pages, row, cols, mask, OP: tl.constexpr):
    """Keys or values of one token."""
    HEADS: tl.constexpr = OP[3]
    HEAD: tl.constexpr = OP[4]
    PAGE: tl.constexpr = OP[5]
    position = position_of(batch, row)
    here = tl.maximum(position, 0)
    page = tl.load(pages + tl.load(batch + row * FIELDS + 2) * OP[6] + here // PAGE).to(tl.int64)
    at = ((page * HEADS + cols // HEAD) * PAGE + here % PAGE) * HEAD + cols % HEAD
    if position >= 0:
        tl.store(cache + at, x.to(cache.dtype.element_ty), mask=mask)


@triton.jit
def _operation(values, pointers, batch, pages, OP: tl.constexpr, rows, cols, mask):
    """The values with what one operation appends to them."""
    if OP[0] == "store":
        to = pointers[OP[2]]
        tl.store(to + rows * OP[3] + cols, values[OP[1]].to(to.dtype.element_ty), mask=mask)
    elif OP[0] == "cache":
        put_in_cache(values[OP[1]], pointers[OP[2]], batch, pages, rows, cols, mask, OP)
    elif OP[0] == "number":
        values = values + (OP[1],)
    elif OP[0] == "load":
        values = values + (tl.load(pointers[OP[1]] + rows * OP[2] + cols, mask=mask, other=0.0).to(tl.float32),)
    elif OP[0] == "wanted":
        at = pointers[OP[1]] + wanted_row(batch, rows) * OP[2] + cols
        values = values + (tl.load(at, mask=mask, other=0.0).to(tl.float32),)
    elif OP[0] == "vector":
        values = values + (tl.load(pointers[OP[1]] + cols % OP[2]).to(tl.float32),)
    elif OP[0] == "embed":
        row = tl.maximum(position_of(batch, rows), 0) if OP[8] else tl.load(batch + rows * FIELDS)
        values = values + (embed(pointers[OP[1]], pointers[OP[2]], pointers[OP[3]], row, cols, mask, OP),)
    elif OP[0] == "Norm":
        x = normalise(values[OP[1]], mask, OP[2], OP[3], OP[6])
        if OP[4] >= 0:
            x *= values[OP[4]]
        if OP[5] >= 0:
            x += values[OP[5]]
        values = values + (x,)
    elif OP[0] == "Rope":
        x = rotate(values[OP[1]], cols, pointers[OP[2]], position_of(batch, rows), OP[3], OP[4], OP[5])
        values = values + (x,)
    else:
        values = values + (call(OP[0], values[OP[1]], values[OP[-1]]),)
    return values


@triton.jit
def evaluate(values, pointers, batch, pages, OPS: tl.constexpr, rows, cols, mask):
    """Run a program on a tile.

    Args:
        values: The values it begins with, a tuple.
        pointers: What its operations refer to.
        batch: Facts of tokens.
        pages: Page numbers of sequences.
        OPS: The program.
        rows: Number of the row, or a row of them, to be combined with ``cols``.
        cols: Numbers of the columns.
        mask: Which are there.
    """
    for i in tl.static_range(len(OPS)):
        values = _operation(values, pointers, batch, pages, OPS[i], rows, cols, mask)
