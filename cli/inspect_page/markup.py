"""Writing HTML and SVG so that nothing from an artifact can become markup.

A page is made only of :class:`Html`, and the only way to it is :func:`h`, which escapes every
plain string. An artifact's names are untrusted; here they can be nothing but text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from aicc.cli.output import clean

VOID = frozenset({"meta", "rect", "line", "path", "circle"})  # elements written without a closing tag


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | None | Sequence["Child"]


def h(tag: str, *children: Child, **attributes: str | int | float) -> Html:
    """One element.

    Args:
        tag: Name of the element.
        children: Strings are escaped, :class:`Html` is taken as it is, lists are flattened and
            None is left out.
        attributes: ``_`` in a name stands for ``-``, a leading ``_`` is dropped (``_class``).
    """
    words = [tag]
    for name, value in attributes.items():
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f'{name.removeprefix("_").replace("_", "-")}="{escape(clean(text))}"')
    start = " ".join(words)
    if tag in VOID:
        return Html(f"<{start}/>" if tag != "meta" else f"<{start}>")
    return Html(f"<{start}>{join(*children)}</{tag}>")


def join(*children: Child) -> Html:
    """Children one after the other, without an element around them."""
    parts: list[Html] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(Html(escape(clean(child))))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))
