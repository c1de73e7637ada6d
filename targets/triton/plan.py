"""The launch plan of a variant, ``plan.json``: what both halves of the family have to know of it.

A step of a decoder is a *body*, on all its tokens, and a *head*, on those whose logits are wanted. Both
come in *tiers*, made for at most so many rows. What a launch needs is fixed when the model is compiled,
but for a few sizes with names: ``tokens`` and ``wanted`` of a step, ``tiles`` of its queries, and the
``pages`` of memory chosen at load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from aicc.targets.launch_plan import Count, Extent, Positive

PLAN_FILE = "plan.json"
VERSION = 2
WEIGHTS, BATCH, PAGES, TILES, LOGITS, CHOSEN = range(6)  # numbers of the first buffers
FIELDS = 4  # int32 a token has in the buffer BATCH: token, position, sequence, wanted row


class Buffer(msgspec.Struct, frozen=True):
    """Memory of the device, zero at first.

    Attributes:
        name: For people.
        bytes: Its length.
    """

    name: str
    bytes: Extent


class Kernel(msgspec.Struct, frozen=True):
    """A function of a binary.

    Attributes:
        file: The binary's name.
        symbol: The function's.
        threads: Of a program.
        shared: Bytes of shared memory of a program.
    """

    file: str
    symbol: str
    threads: Positive
    shared: Count


class Argument(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a kernel is given: an address, or a size as int32.

    Attributes:
        buffer: Number of the buffer; -1 if it is a size.
        offset: Bytes from its begin.
        size: Name of the size.
    """

    buffer: Annotated[int, msgspec.Meta(ge=-1)] = -1
    offset: Count = 0
    size: str = ""


class Launch(msgspec.Struct, frozen=True):
    """One launch.

    Attributes:
        node: The graph's node it comes from, for people.
        kernel: Number of the kernel.
        grid: Programs in x, y and z.
        arguments: In order, without the two addresses that every kernel of Triton has at its end.
    """

    node: str
    kernel: Count
    grid: tuple[Extent, Extent, Extent]
    arguments: tuple[Argument, ...]


class Tier(msgspec.Struct, frozen=True):
    """Launches for at most ``most`` rows."""

    most: Positive
    launches: tuple[Launch, ...]


class Plan(msgspec.Struct, frozen=True):
    """How a device runs a decoder.

    Attributes:
        version: :data:`VERSION` of this file's form.
        weights_bytes: Of the artifact's weights file that go into the first buffer.
        vocab: Columns of the logits.
        page_tokens: Tokens of a page.
        table: Pages a sequence may have.
        sequences: Most of a step.
        tile: Most queries of a tile.
        decode: Steps of at most so many tokens take their queries one by one, the others by tiles.
        buffers: All memory; those of :data:`WEIGHTS` to :data:`CHOSEN` come first.
        kernels: All kernels.
        body: Tiers by tokens, ascending.
        head: Tiers by wanted rows, ascending.
        choice: After a head: int32 ``[wanted, 2]`` in the buffer CHOSEN, the likeliest tokens and their logits' bits.
    """

    version: int
    weights_bytes: Count
    vocab: Positive
    page_tokens: Positive
    table: Positive
    sequences: Positive
    tile: Positive
    decode: Positive
    buffers: tuple[Buffer, ...]
    kernels: tuple[Kernel, ...]
    body: tuple[Tier, ...]
    head: tuple[Tier, ...]
    choice: tuple[Launch, ...]

    def launches(self) -> Iterator[Launch]:
        """All of them."""
        for each in (*self.body, *self.head):
            yield from each.launches
        yield from self.choice

    @property
    def max_tokens(self) -> int:
        """Of a step."""
        return self.body[-1].most


def tier(tiers: tuple[Tier, ...], rows: int) -> Tier:
    """The one made for so many rows."""
    return next(t for t in tiers if rows <= t.most)
