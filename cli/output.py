"""What goes where: results on stdout, progress and remarks on stderr, both fit for a terminal or a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status

    from aicc.runtime.provider import Compatibility

PIPE_WIDTH = 200  # columns of a table nobody's terminal wraps


def human_bytes(count: int | float) -> str:
    """A size in decimal units with three significant digits: ``98.4 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def clean(text: str) -> str:
    """Text from a file as it may be shown: control characters, which could drive a terminal, are replaced.

    Newlines and tabs stay.
    """
    return "".join(c if c in "\n\t" or c.isprintable() or c == "\u00ad" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """The same on a single line."""
    return " ".join(clean(text).split())


def shown_path(path: Path) -> str:
    """A path in a document; bytes of it that are no text, which a system allows and JSON does not, are replaced."""
    return os.fsencode(path).decode(errors="replace")


def note(text: str) -> None:
    """Say something about the work on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def note_compatibility(compatibility: Compatibility) -> None:
    """Say on stderr why an artifact is not at its best here, if it is not."""
    if compatibility.reason:
        note(f"note: {compatibility.reason}")


def print_json(document: Any) -> None:
    """Print one JSON object, indented, numbers that are not finite as null."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    print(text, flush=True)


def print_result(*parts: RenderableType) -> None:
    """Print tables and lines on stdout, coloured only on a terminal and never wrapped in a pipe."""
    console = _console(sys.stdout)
    with console.capture() as drawn:
        for part in parts:
            console.print(part)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), flush=True)


def write_text(text: str) -> None:
    """Stream a piece of generated text to stdout: as it is into a pipe, cleaned on a terminal."""
    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_atomically(files: Mapping[Path, Callable[[IO[bytes]], object]]) -> None:
    """Write files so that each is either the old one or the whole new one.

    All are written beside their places before the first takes its own, so a full disk changes
    none. Only then are they renamed one by one: if the system refuses one of those, the files
    before it are the new ones already. A link stays, and the file it leads to is replaced.

    Args:
        files: What writes the content of each.

    Raises:
        UsageError: A device, a pipe or a folder is there, which a file must not replace.
    """
    from aicc.runtime.errors import UsageError

    places = {path: Path(os.path.realpath(path)) for path in files}
    for path, place in places.items():
        if place.exists() and not place.is_file():
            raise UsageError(f"{path} is there and is no file, so it is not replaced.", "Choose another name.")
    partial = {path: place.with_name(f".{place.name}.{os.getpid()}.partial") for path, place in places.items()}
    try:
        for path, write in files.items():
            try:
                file = partial[path].open("wb")
            except OSError as error:
                error.filename = str(path)  # the name the user gave
                raise
            with file:
                write(file)
        for path in files:
            partial[path].replace(places[path])
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else PIPE_WIDTH)


def facts(rows: Sequence[tuple[str, str]]) -> RenderableType:
    """Two columns without a frame: what, and its value. Values are shown cleaned."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(one_line(value)))
    return table


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> RenderableType:
    """A titled table; the columns named in ``right`` hold numbers. Cells are shown cleaned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    frame = SIMPLE_HEAD if sys.stdout.isatty() else None
    drawn = Table(title=title or None, title_justify="left", title_style="bold", box=frame, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(one_line(cell)) for cell in row))
    return drawn


class Progress:
    """Shows the phases of a long command on stderr.

    On a terminal a spinner carries the newest message and every finished phase leaves a line with
    its seconds; elsewhere each message is a plain line. Call it with ``(phase, message)``.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._message = ""
        self._started = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        if self._terminal:
            self._status = _console(sys.stderr).status("")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._status is not None:
            if kind is None:
                self._finish_phase()
            self._status.stop()

    def __call__(self, phase: str, message: str) -> None:
        """Show that ``phase`` is at ``message``."""
        phase, message = one_line(phase), one_line(message)
        if self._status is None:
            if (phase, message) != (self._phase, self._message):
                print(f"{phase}: {message}" if message else phase, file=sys.stderr, flush=True)
        else:
            if phase != self._phase:
                self._finish_phase()
                self._started = time.monotonic()
            self._status.update(f"{phase} … {message}")
        self._phase, self._message = phase, message

    def _finish_phase(self) -> None:
        if self._phase and self._status is not None:
            seconds = time.monotonic() - self._started
            self._status.console.print(f"✓ {self._phase} {seconds:.1f} s", style="green")
