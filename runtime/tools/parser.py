"""Reads calls of functions out of what a model says, while it says it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Sequence

import msgspec

from aicc.runtime.tools.formats import ToolFormat

_HEAD = re.compile(r'[\s\[\]},;]*\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_LONGEST_HEAD = 4096  # characters; what has no name by then is text


class Text(msgspec.Struct, frozen=True):
    """What is said besides calls."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """A call begins; calls count from 0."""

    index: int
    id: str
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """The next characters of a call's arguments, a JSON object."""

    index: int
    text: str


Said = Text | Call | Arguments


class ToolCallParser:
    """Reads one answer.

    What only looks like a call (of a function that is not on offer, or not JSON) is text, as it is.

    Args:
        form: How calls are written.
        names: Functions on offer.
        marker_token: The token the form's marker is, if it is a special one, which has no text.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], marker_token: int | None = None) -> None:
        self._form = form
        self._names = frozenset(names)
        self._marker_token = marker_token
        self._state = self._read_text
        self._held = ""  # not told yet
        self._opened = ""  # the marker in front of what is held, if it turns out to be text
        self._begun = False  # something that begins no call was said
        self._depth = 0  # of braces in the arguments
        self._quoted = self._escaped = False
        self.calls = 0

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Said]:
        """Take what was said next; returns what is certain."""
        if self._marker_token is not None and self._marker_token in token_ids and self._state == self._read_text:
            self._state = self._read_head
        self._held += text
        return _joined(self._run())

    def finish(self) -> list[Said]:
        """What was held back, when nothing more is said."""
        said: list[Said] = []
        if self._state == self._read_head:
            said += self._whole_call(self._held)
        elif self._state == self._read_text:
            said += [Text(self._held)]
        self._held = ""
        return _joined(iter(said))

    def _run(self) -> Iterator[Said]:
        progress = True
        while progress:
            state, length = self._state, len(self._held)
            yield from state()
            progress = bool(self._held) and (self._state != state or len(self._held) != length)

    def _read_text(self) -> Iterator[Said]:
        marker = self._form.marker
        if self._marker_token is not None:
            yield from self._tell(len(self._held))
        elif not marker:
            yield from self._read_beginning()
        elif (at := self._held.find(marker)) >= 0:
            yield from self._tell(at)
            self._held, self._opened, self._state = self._held[len(marker) :], marker, self._read_head
        else:
            kept = next((n for n in range(len(marker) - 1, 0, -1) if self._held.endswith(marker[:n])), 0)
            yield from self._tell(len(self._held) - kept)

    def _read_beginning(self) -> Iterator[Said]:
        """Text of a form whose calls begin where the answer does."""
        beginning = self._held.lstrip()
        if not self._begun and beginning.startswith("{"):
            self._state = self._read_head
        elif self._begun or beginning:
            self._begun = True
            yield from self._tell(len(self._held))

    def _read_head(self) -> Iterator[Said]:
        head = _HEAD.match(self._held)
        if head and head["name"] in self._names:
            yield Call(self.calls, "call_" + secrets.token_hex(12), head["name"])
            self.calls += 1
            self._held, self._depth, self._state = self._held[head.end() :], 0, self._read_arguments
        elif (end := self._end_of_call()) is not None:
            call, self._held = self._held[:end], self._held[end:]
            self._state = self._read_close
            yield from self._whole_call(call)
        elif len(self._held) > _LONGEST_HEAD:
            self._state, self._begun = self._read_text, True
            yield Text(self._opened)
            yield from self._tell(len(self._held))

    def _end_of_call(self) -> int | None:
        at = self._held.find(self._form.closing) if self._form.closing else -1
        return at if at >= 0 else None

    def _whole_call(self, text: str) -> Iterator[Said]:
        """What is held of a call that did not begin as calls usually do: one in another order, or text."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            call = None
        arguments = (call.get("arguments"), call.get("parameters")) if isinstance(call, dict) else ()
        found = next((value for value in arguments if isinstance(value, dict)), None)
        if isinstance(call, dict) and call.get("name") in self._names and found is not None:
            yield Call(self.calls, "call_" + secrets.token_hex(12), call["name"])
            yield Arguments(self.calls, json.dumps(found))
            self.calls += 1
        elif not self.calls or text.strip(" \t\r\n[]},;"):  # else what closes the calls before
            yield Text(self._opened + text)
            if self._state == self._read_close:
                self._state = self._read_text

    def _read_arguments(self) -> Iterator[Said]:
        end = self._end_of_object()
        if end:
            yield Arguments(self.calls - 1, self._held[:end])
        self._held = self._held[end:]
        if self._depth == 0:
            self._state = self._read_close if self._form.closing else self._read_head
            self._opened = ""

    def _end_of_object(self) -> int:
        """How many of the held characters belong to the arguments."""
        for i, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1
        return len(self._held)

    def _read_close(self) -> Iterator[Said]:
        """What stands behind a call is no text."""
        at = self._held.find(self._form.closing.strip())
        if at >= 0:
            self._held = self._held[at + len(self._form.closing.strip()) :].lstrip()
            self._state = self._read_text
        yield from ()

    def _tell(self, count: int) -> Iterator[Said]:
        if count and not (self.calls and not self._held[:count].strip()):  # not the line breaks between calls
            yield Text(self._held[:count])
        self._held = self._held[count:]


def _joined(said: Iterator[Said]) -> list[Said]:
    """The same with neighbouring texts in one, and without empty ones."""
    joined: list[Said] = []
    for each in said:
        if isinstance(each, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + each.text)
        elif not isinstance(each, Text) or each.text:
            joined.append(each)
    return joined
