"""Where each layer lies on the wafer: a rectangle of cores that holds its weights and cache, side by side in rows."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import msgspec
import onnx_ir as ir

from aicc.runtime.errors import ResourceError
from aicc.targets.cerebras.target import CODE_BYTES, CORE_BYTES, FABRICS


class Region(msgspec.Struct, frozen=True):
    """The cores of a part of the model.

    Attributes:
        part: ``layers.<i>``, or ``embeddings`` for all else.
        x: Its first core from the left.
        y: Its first core from the top.
        width: Cores across.
        height: Cores down.
        bytes: Of weights and cache on it.
        bytes_per_core: The same, spread evenly; code comes on top.
    """

    part: str
    x: int
    y: int
    width: int
    height: int
    bytes: int
    bytes_per_core: int


def place(model: ir.Model, generation: str) -> list[Region]:
    """Give each part of a static graph its cores.

    Args:
        model: Weights by their initializers, the cache by its inputs; layers are known by their numbers.
        generation: ``wse2`` or ``wse3``.

    Raises:
        ResourceError: The wafer has too few cores.
    """
    sizes: dict[str, int] = defaultdict(int)
    for value in (*model.graph.initializers.values(), *model.graph.inputs):
        if value.uses() and value.shape is not None and value.dtype is not None:
            sizes[_part(str(value.name))] += math.prod(int(d) for d in value.shape) * int(value.dtype.itemsize)
    across, down = FABRICS[generation]
    room, regions = CORE_BYTES - CODE_BYTES, list[Region]()
    x = y = tallest = 0
    for part in sorted(sizes, key=lambda name: int(name.removeprefix("layers.")) if "." in name else -1):
        cores = math.ceil(sizes[part] / room)
        width = min(across, math.ceil(math.sqrt(cores)))
        height = math.ceil(cores / width)
        if x + width > across:
            x, y, tallest = 0, y + tallest, 0
        if y + height > down:
            needed = sum(math.ceil(size / room) for size in sizes.values())
            raise ResourceError(
                f"the model needs about {needed:,} cores of {CORE_BYTES:,} bytes, and a wafer has {across * down:,}.",
                "Choose a smaller model; `aicc plan` says how many wafers it would be.",
            )
        each = math.ceil(sizes[part] / (width * height))
        regions.append(Region(part, x, y, width, height, sizes[part], each))
        x, tallest = x + width, max(tallest, height)
    return regions


def _part(name: str) -> str:
    found = re.search(r"(?:layers|past_key_values)\.(\d+)\.", name)
    return f"layers.{found[1]}" if found else "embeddings"
