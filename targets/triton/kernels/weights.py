"""Quantised weights as floats, in registers.

Rows are padded to whole chunks of 32 columns. A byte of 4-bit weights has column ``j`` of its chunk
in its low half and column ``16 + j`` in its high half, so both halves meet rows of consecutive columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(32)


@triton.jit
def unpack(integers, ZERO: tl.constexpr):
    """Unsigned integers of at most 8 bits, less ``ZERO``, as float32.

    They are put into the mantissa of 2²³, which takes two instructions of full rate; conversions run at a
    quarter of it.
    """
    bits = integers.to(tl.uint32) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (8388608.0 + ZERO)
