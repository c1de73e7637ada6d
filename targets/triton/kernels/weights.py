"""Quantised weights as floats, in registers.

Rows are padded to whole chunks of 32 columns. A byte of 4-bit weights has column ``j`` of its chunk
in its low half and column ``16 + j`` in its high half, so both halves meet rows of consecutive columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(32)
E4M3 = tl.constexpr(-1)  # in the place of what is subtracted from integers
ROOT = tl.constexpr(2.0**56)  # its square is what small float8 lack of unpacked ones


@triton.jit
def unpack(integers, ZERO: tl.constexpr):
    """Unsigned integers of at most 8 bits, less ``ZERO``, as float32; float8 where ``ZERO`` is :data:`E4M3`.

    Integers are put into the mantissa of 2²³, which takes two instructions of full rate; conversions run at a
    quarter of it. A float8's exponent and mantissa are put into float16's, whose exponents are 8 less; so each is
    2⁻⁸ of what it stands for, which its scale makes up for. That is exact, and needs no instructions for float8,
    which chips have for different kinds of it or not at all.
    """
    if ZERO == E4M3:
        wide = integers.to(tl.uint16)
        bits = (wide & 0x80) << 8 | (wide & 0x7F) << 7
        result = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        bits = integers.to(tl.uint32) | 0x4B000000
        result = bits.to(tl.float32, bitcast=True) - (8388608.0 + ZERO)
    return result


@triton.jit
def small_e4m3(bytes):
    """Float8 as float32, 2⁻¹¹² of what :func:`unpack` gives, in half the instructions.

    Exponent and mantissa are put into float32's, whose exponents are 120 less. What they are multiplied with is to be
    :data:`ROOT` times as large, and so is the result, so that neither is too small for float32.
    """
    return (bytes.to(tl.int32) << 24 >> 4 & -0x78100000).to(tl.float32, bitcast=True)
