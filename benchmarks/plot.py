"""The comparison as a picture: python benchmarks/plot.py RESULT.json draws RESULT.svg beside it.

Plain SVG, so that it needs nothing, can be compared as text and follows the reader's light or
dark mode. Each panel is one figure, each bar an engine, each whisker the least and most seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from table import caption

_PANELS: tuple[tuple[str, str, str, Callable[[float], float], Callable[[float], str]], ...] = (
    ("Decode", "tokens/s, more is better", "decode_tokens_per_s", lambda v: v, lambda v: f"{v:.0f}"),
    ("Prefill", "tokens/s, more is better", "prefill_tokens_per_s", lambda v: v, lambda v: f"{v:,.0f}"),
    ("Load", "seconds, less is better", "load_s", lambda v: v, lambda v: f"{v:.2f}"),
    ("Peak memory", "MB, less is better", "peak_rss_bytes", lambda v: v / 1e6, lambda v: f"{v:.0f}"),
)
_LABELS, _PANEL, _GAP, _ROW, _TOP, _MARGIN = 262, 150, 52, 26, 92, 20
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px } .panel { font-weight: 600 }
  .note { font-size: 11px; fill: #59636e }
  .page { fill: #ffffff; stroke: #d1d9e0 } .ours { fill: #0969da } .peer { fill: #a9b4bf }
  .own { font-weight: 600 } .spread { stroke: #59636e; stroke-width: 1.5 } .axis { stroke: #d1d9e0 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .note { fill: #9198a1 } .page { fill: #0d1117; stroke: #3d444d }
    .ours { fill: #4493f8 } .peer { fill: #565f6a } .spread { stroke: #9198a1 } .axis { stroke: #3d444d }
  }
"""


def draw(document: dict[str, Any]) -> str:
    """One SVG document; the same result gives the same text."""
    engines = document["engines"]
    width = _LABELS + len(_PANELS) * (_PANEL + _GAP) + _MARGIN
    height = _TOP + len(engines) * _ROW + 50
    title = f"{document['model']}: one request, {document['threads']} threads, {document['machine']['processor']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(caption(document))}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 30, title, "title"),
    ]
    for index, engine in enumerate(engines):
        own = "own" if _is_ours(engine) else ""
        parts.append(_text(_MARGIN, _TOP + index * _ROW + 17, engine["name"], own))
    for index, panel in enumerate(_PANELS):
        parts += _panel(_LABELS + _MARGIN + index * (_PANEL + _GAP), engines, *panel)
    parts += [_text(_MARGIN, height - 18, f"{caption(document)}, whiskers from least to most.", "note"), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(
    left: int,
    engines: list[dict[str, Any]],
    title: str,
    unit: str,
    key: str,
    scale: Callable[[float], float],
    write: Callable[[float], str],
) -> list[str]:
    """Bars of one figure, all from zero, the longest whisker as wide as the panel."""
    bottom = _TOP + len(engines) * _ROW
    parts = [
        _text(left, _TOP - 26, title, "panel"),
        _text(left, _TOP - 10, unit, "note"),
        f'<line class="axis" x1="{left}" y1="{_TOP}" x2="{left}" y2="{bottom}"/>',
    ]
    most = max(scale(engine[key]["max"]) for engine in engines)
    for index, engine in enumerate(engines):
        low, middle, high = (scale(engine[key][part]) for part in ("min", "median", "max"))
        top, center = _TOP + index * _ROW + 5, _TOP + index * _ROW + 13
        start, end = (left + value / most * _PANEL for value in (low, high))
        colour = "ours" if _is_ours(engine) else "peer"
        parts += [
            f'<rect class="{colour}" x="{left}" y="{top}" width="{middle / most * _PANEL:.1f}" height="16" rx="2"/>',
            f'<line class="spread" x1="{start:.1f}" y1="{center}" x2="{end:.1f}" y2="{center}"/>',
            _text(round(end, 1) + 5, top + 12, write(middle), ""),
        ]
    return parts


def _is_ours(engine: dict[str, Any]) -> bool:
    return str(engine["name"]).startswith("aicc")


def _text(x: float, y: float, content: str, style: str) -> str:
    chosen = f' class="{style}"' if style else ""
    return f'<text x="{x}" y="{y}"{chosen}>{escape(content)}</text>'


def main() -> None:
    """Draw a result beside its file."""
    parser = argparse.ArgumentParser(description="Draw the comparison as a picture.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--output", type=Path, help="default: the result's name with .svg")
    options = parser.parse_args()
    output = options.output or options.result.with_suffix(".svg")
    output.write_text(draw(json.loads(options.result.read_text())))
    print(output)


if __name__ == "__main__":
    main()
