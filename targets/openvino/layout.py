"""What both halves of the family must agree on: the files of a variant, and their content."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

GRAPH_FILE = "model.xml"
DECODER_FILE = "decoder.json"
STAND_IN = "attention.{}"  # names the node that the provider replaces by paged attention

Size = Annotated[int, Meta(ge=1, le=1 << 16)]


class AttentionLayer(msgspec.Struct, frozen=True):
    """One attention of a decoder, in graph order.

    Attributes:
        kv_heads: Heads of keys and values.
        head_size: Values a head has.
        scale: Factor on the scores.
        window: Keys a query sees, itself included; 0 is all before it.
        slopes: What each query head adds to its scores for a key one token nearer (ALiBi); empty for none.
    """

    kv_heads: Size
    head_size: Size
    scale: Annotated[float, Meta(gt=0, le=1e3)]
    window: Annotated[int, Meta(ge=0, le=1 << 30)]
    slopes: Annotated[tuple[Annotated[float, Meta(ge=-1e3, le=1e3)], ...], Meta(max_length=1 << 16)] = ()


class DecoderLayout(msgspec.Struct, frozen=True):
    """What ``decoder.json`` holds."""

    layers: Annotated[tuple[AttentionLayer, ...], Meta(min_length=1, max_length=10_000)]
