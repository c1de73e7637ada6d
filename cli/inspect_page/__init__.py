"""The page ``aicc inspect --html`` writes: one file that shows what an artifact is and how it was made.

It needs nothing from anywhere else (its content policy forbids it), reads in light and dark, and
every picture has its numbers in words.
"""

from __future__ import annotations

from importlib import resources

from aicc.cli.inspect_page import sections
from aicc.cli.inspect_page.markup import Html, h
from aicc.cli.inspection import InspectDocument

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(document: InspectDocument) -> str:
    """The whole page as text, to be written as UTF-8."""
    manifest = document.manifest
    css = Html(resources.files(__name__).joinpath("page.css").read_text("utf-8"))
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", f"{manifest.name} — aicc"),
        h("style", css),
    )
    body = h(
        "main",
        sections.header(document),
        sections.weights(document),
        sections.quality(document),
        sections.making(document),
        sections.coverage(document),
        sections.devices(document),
        sections.contents(document),
        sections.footer(document),
    )
    return f"<!doctype html>\n{h('html', head, h('body', body), lang='en')}\n"
