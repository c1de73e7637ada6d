"""Which part of the model each weight belongs to, read from its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

# "model.layers.12.mlp", "blk.12.ffn_up", "encoder.layer.3.output", "transformer.h.7": a repeated block.
NUMBERED = re.compile(r"(?:^|[./])(?:layers?|blk|blocks?|h)[./_](\d+)(?=[./_]|$)")


class Weights(Protocol):
    """A named group of weights; :class:`aicc.compiler.report.LayerRecord` is one."""

    name: str
    bytes: int
    format: str


@dataclass(slots=True)
class Part:
    """A slice of the model in the pictures.

    Attributes:
        label: ``layer 12``, or the weight's own name.
        numbered: Whether it is one of the repeated layers.
        formats: Bytes by number format.
    """

    label: str
    numbered: bool
    formats: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the whole part."""
        return sum(self.formats.values())


def parts(layers: Sequence[Weights], most: int = 160) -> list[Part]:
    """Gather weights into repeated layers, in the model's order.

    Args:
        layers: What the report says.
        most: Parts the pictures can show; beyond it the smallest are gathered in one.
    """
    found: dict[str, Part] = {}
    for record in layers:
        match = NUMBERED.search(record.name)
        label = f"layer {match[1]}" if match else record.name
        part = found.setdefault(label, Part(label, match is not None))
        part.formats[record.format] = part.formats.get(record.format, 0) + record.bytes
    order = list(bytes_by_format(layers))
    for part in found.values():  # the same format at the same place of every stack
        part.formats = {name: part.formats[name] for name in order if name in part.formats}
    every = list(found.values())
    if len(every) <= most:
        return every
    kept = {id(part) for part in sorted(every, key=lambda part: part.bytes, reverse=True)[: most - 1]}
    rest = Part(f"{len(every) - len(kept)} small ones", False)
    for part in every:
        if id(part) not in kept:
            for name, count in part.formats.items():
                rest.formats[name] = rest.formats.get(name, 0) + count
    return [part for part in every if id(part) in kept] + [rest]


def bytes_by_format(layers: Sequence[Weights]) -> dict[str, int]:
    """Bytes of each number format, most first."""
    total: dict[str, int] = {}
    for record in layers:
        total[record.format] = total.get(record.format, 0) + record.bytes
    return dict(sorted(total.items(), key=lambda item: -item[1]))
