"""The comparison as a Markdown table: python benchmarks/table.py RESULT.json [--into README.md]."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_BEGIN, _END = "<!-- benchmark:begin -->\n", "<!-- benchmark:end -->"
_BLOCK = re.compile(f"{_BEGIN}(.*?){_END}", re.DOTALL)

# Heading, the row's key, and how its numbers are written.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("load, s", "load_s", lambda v: f"{v:.2f}"),
    ("first token from nothing, s", "first_token_s", lambda v: f"{v:.2f}"),
    ("prefill, tokens/s", "prefill_tokens_per_s", lambda v: f"{v:,.0f}"),
    ("decode, tokens/s", "decode_tokens_per_s", lambda v: f"{v:.1f}"),
    ("peak memory, MB", "peak_rss_bytes", lambda v: f"{v / 1e6:,.0f}"),
)


def table(document: dict[str, Any]) -> str:
    """Medians with their spread in brackets, one row an engine, and what it was measured on."""
    headings = ["engine", "weights", *(heading for heading, _, _ in _COLUMNS), "of bandwidth", "of matrix peak"]
    lines = [headings]
    for row in document["engines"]:
        cells = [row["name"], row["weights"]]
        for _, key, write in _COLUMNS:
            low, middle, high = (write(row[key][part]) for part in ("min", "median", "max"))
            cells.append(f"{middle} ({low}–{high})")
        cells += [f"{row[f'{limit}_fraction']:.0%}" for limit in ("bandwidth", "matrix_peak")]
        lines.append(cells)
    return f"{markdown(lines, texts=2)}\n{caption(document)}, least and most in brackets.\n"


def markdown(lines: list[list[str]], texts: int) -> str:
    """Cells as a table, the first line being its headings and the first ``texts`` columns no numbers."""
    heading, *rest = lines
    ruled = [heading, ["---"] * texts + ["---:"] * (len(heading) - texts), *rest]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in ruled)


def caption(document: dict[str, Any]) -> str:
    """What was measured, on what and when, without its full stop."""
    machine = document["machine"]
    return (
        f"{document['model']} with {document['prompt_tokens']} prompt and {document['decode_tokens']} decoded tokens, "
        f"{document['threads']} threads on {machine['processor']} ({machine['cores']} cores), "
        f"{document['date'][:10]}; medians of {document['rounds']} alternating rounds"
    )


def section(result: Path) -> str:
    """The picture beside a result, and its table; paths are the project's."""
    document = json.loads(result.read_text())
    picture = result.resolve().with_suffix(".svg").relative_to(ROOT).as_posix()
    return f"![{caption(document)}]({picture})\n\n{table(document)}"


def named_result(text: str) -> Path | None:
    """The result whose picture stands between a text's markers; None without one."""
    block = _BLOCK.search(text)
    picture = re.search(r"\]\(([^()]*)\.svg\)", block[1]) if block else None
    return ROOT / f"{picture[1]}.json" if picture else None


def fill(text: str, result: Path) -> str:
    """A text with the section of a result between its markers."""
    return _BLOCK.sub(lambda _: _BEGIN + section(result) + _END, text)


def main() -> None:
    """Print the table, or put it where a file's marker is."""
    parser = argparse.ArgumentParser(description="The comparison as a Markdown table.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the text between FILE's benchmark markers")
    options = parser.parse_args()
    if options.into is None:
        print(table(json.loads(options.result.read_text())), end="")
        return
    text = options.into.read_text()
    if len(_BLOCK.findall(text)) != 1:
        parser.error(f"{options.into} must have the lines {_BEGIN.strip()} and {_END}, once.")
    options.into.write_text(fill(text, options.result))


if __name__ == "__main__":
    main()
