"""The pictures of the page: bars made of markup, so that they scale, print and read aloud.

Every picture has a text alternative, and its numbers stand beside it or in a table below: colour
alone never carries a fact.
"""

from __future__ import annotations

from collections.abc import Sequence

from aicc.cli.inspect_page.layers import Part
from aicc.cli.inspect_page.markup import Html, h
from aicc.cli.output import human_bytes

COLOURS = 6  # classes c0 … c5 of the stylesheet; c5 also stands for whatever comes after


def colour(names: Sequence[str], name: str) -> str:
    """The class that colours a format, the same wherever it is drawn."""
    return f"c{min(names.index(name), COLOURS - 1)}"


def legend(counts: dict[str, int]) -> Html:
    """Each format with its colour, bytes and share."""
    total = sum(counts.values()) or 1
    names = list(counts)
    return h(
        "ul",
        [
            h(
                "li",
                h("span", _class=f"swatch {colour(names, name)}", aria_hidden="true"),
                h("b", name),
                f" {human_bytes(count)}, {share(count, total)}",
            )
            for name, count in counts.items()
        ],
        _class="legend",
    )


def share(part: int, whole: int) -> str:
    """A percentage that never calls something nothing or almost everything all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1%"
    if 99.9 < percent < 100:
        return "over 99.9%"
    return f"{percent:.1f}%".replace(".0%", "%")


def model_strip(model: Sequence[Part], formats: Sequence[str]) -> Html:
    """The whole model from left to right: a part is as wide as its bytes, cut by format."""
    total = sum(part.bytes for part in model) or 1
    slices = [
        h(
            "div",
            [
                h("i", style=f"flex:{count}", _class=colour(formats, name))
                for name, count in part.formats.items()
                if count
            ],
            h("span", part.label, _class="label") if part.bytes / total > 0.12 else None,
            style=f"flex:{part.bytes}",
            title=f"{part.label}: {human_bytes(part.bytes)}, {share(part.bytes, total)} ({_formats(part)})",
        )
        for part in model
        if part.bytes
    ]
    biggest = max(model, key=lambda part: part.bytes)
    text = (
        f"The model's {human_bytes(total)} of weights drawn in order. "
        f"The biggest part is {biggest.label} with {share(biggest.bytes, total)}."
    )
    return h("div", slices, _class="strip", role="img", aria_label=text)


def layer_columns(model: Sequence[Part], formats: Sequence[str]) -> Html | None:
    """One column for each repeated layer, stacked by format; nothing if there are no such layers."""
    layers = [part for part in model if part.numbered and part.bytes]
    if len(layers) < 2:
        return None
    tallest = max(part.bytes for part in layers)
    step = -(-len(layers) // 16)  # a label under each column would not be legible
    columns = [
        h(
            "div",
            h(
                "div",
                [
                    h("i", style=f"flex:{count}", _class=colour(formats, name))
                    for name, count in part.formats.items()
                    if count
                ],
                _class="column",
                style=f"height:{100 * part.bytes / tallest:.2f}%",
            ),
            h("span", part.label.removeprefix("layer ") if index % step == 0 else "", _class="tick"),
            title=f"{part.label}: {human_bytes(part.bytes)} ({_formats(part)})",
        )
        for index, part in enumerate(layers)
    ]
    text = f"{len(layers)} layers of up to {human_bytes(tallest)} each, stacked by number format."
    axis = h("div", h("span", human_bytes(tallest)), h("span", human_bytes(tallest / 2)), h("span", "0"), _class="axis")
    return h("div", axis, h("div", columns, _class="plot"), _class="columns", role="img", aria_label=text)


def bar(segments: Sequence[tuple[str, float]], whole: float, text: str, offset: float = 0.0) -> Html:
    """A horizontal bar.

    Args:
        segments: (class, amount) from left to right.
        whole: The amount that fills the width.
        text: What it shows, for those who do not see it.
        offset: Amount left empty before the first segment.
    """
    whole = whole or 1.0
    gap = h("i", style=f"width:{100 * offset / whole:.2f}%") if offset else None
    drawn = [h("i", _class=name, style=f"width:{100 * amount / whole:.2f}%") for name, amount in segments if amount > 0]
    return h("div", gap, drawn, _class="bar", role="img", aria_label=text, title=text)


def _formats(part: Part) -> str:
    return ", ".join(f"{name} {human_bytes(count)}" for name, count in part.formats.items())
