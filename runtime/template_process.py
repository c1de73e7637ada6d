"""The process that renders chat templates, and its handle.

A template is a program inside a model file. The engine that renders it counts instructions, but
single instructions can still walk a list that was added to itself again and again, or print a
namespace that holds itself until the stack ends, and nothing inside a process can stop those. So a
template never runs in the process that holds the model: it has one of its own, with little memory
and little time, which takes down nobody but itself. It is started with the first conversation and
stays for the next.

Both sides write one JSON object a line. The child greets, is told the template, and then answers
each source it is asked to render with its text or with why there is none.
"""

from __future__ import annotations

import faulthandler
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from aicc.runtime.errors import AiccError, ResourceError, UnsupportedError, UsageError, first_line

SECONDS = 10  # longest a rendering may take; usual ones take less than a millisecond
_PATIENCE = SECONDS + 5  # of this side, with a process that is stopped and cannot end itself
_START_SECONDS = 60  # longest it may take to greet
_MEMORY_BYTES = 1 << 30  # of address space
_FUEL = 1_000_000  # instructions of the template engine, some tens of milliseconds
_FUEL_PER_CHARACTER = 100  # and more for a longer conversation
_MAX_OUTPUT = 1 << 20  # characters a template may add
_MAX_GROWTH = 16  # times the conversation it may write
_MAX_INDENT = 16
_MAX_REASON = 500  # characters of a template's own words for refusing
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,200}")  # no widths: "%999999999d" is a gigabyte
_GREETING = b"ready\n"


class TemplateProcess:
    """The handle of a process that renders one template; started, and started again, when needed.

    Args:
        template: Jinja text.
        name: What messages call its model.
    """

    def __init__(self, template: str, name: str) -> None:
        self._name = name
        self._template = {"template": template, "name": name, "seconds": SECONDS}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False  # it has read the template
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, if it does not run, without waiting for it: the caller may have other work meanwhile.

        Raises:
            ResourceError: The process cannot be started.
        """
        with self._lock:
            self._started()

    def check(self) -> None:
        """Have the template read.

        Raises:
            UnsupportedError: It is not a template.
            ResourceError: The process cannot be started.
        """
        with self._lock:
            self._running()

    def render(self, source: str) -> str:
        """The text of a template that may include ``template``.

        Raises:
            UsageError: The template refuses the conversation.
            UnsupportedError: It needs too much time or memory, or writes too much.
            ResourceError: The process cannot be started.
        """
        with self._lock:
            return self._ask(self._running(), {"source": source})

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        process, self._process, self._ready = self._process, None, False
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, which may not have greeted yet."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        # -P: a file in the current folder that is called like a module must not become one.
        command = [sys.executable, "-P", "-m", __name__]
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C in a terminal is for the program, which may go on.
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise self._not_started(str(error)) from error
        return self._process

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, once it has read the template."""
        process = self._started()
        if self._ready:
            return process
        assert process.stdout is not None
        try:
            with _bounded(process, _START_SECONDS):
                greeting = process.stdout.readline()
            if greeting != _GREETING:
                raise self._not_started("it ended at once, or did not begin to run")
            self._ask(process, self._template)
        except BaseException:
            self.close()
            raise
        self._ready = True
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        try:
            with _bounded(process, _PATIENCE):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except OSError:
            pass  # it ended before it read everything
        finally:
            if not line.endswith(b"\n"):  # it ended, or this side was interrupted and the answer would be late
                self.close()
        if not line.endswith(b"\n"):
            raise UnsupportedError(
                f"the chat template of {self._name} needs too much time or memory, and was stopped.",
                "Use the model without a template (--raw).",
            )
        answer = json.loads(line)
        if "text" in answer:
            return str(answer["text"])
        kind = UsageError if answer["usage"] else UnsupportedError
        raise kind(answer["message"], answer["remedy"])

    def _not_started(self, reason: str) -> ResourceError:
        return ResourceError(
            f"the process that renders the chat template of {self._name} cannot be started: {reason}.",
            f"Free some memory, and check that {sys.executable} runs; or use the model without a template (--raw).",
        )


@contextmanager
def _bounded(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """End a process that has not done its part in time, so that who waits for it goes on."""
    overdue = threading.Timer(seconds, process.kill)
    overdue.daemon = True
    overdue.start()
    try:
        yield
    finally:
        overdue.cancel()


class Renderer:
    """A template in the process that renders it.

    Args:
        template: Jinja text.
        name: What messages call its model.

    Raises:
        UnsupportedError: It is not a template.
    """

    def __init__(self, template: str, name: str) -> None:
        import minijinja

        self._name = name
        self._environment = minijinja.Environment(
            loader=lambda _: None,
            trim_blocks=True,
            lstrip_blocks=True,
            debug=False,
            filters={"tojson": _tojson},
            globals={"raise_exception": self._refuse, "strftime_now": _strftime_now},
        )
        try:
            self._environment.add_template("template", _GENERATION_TAG.sub(_plain_block, template))
        except (minijinja.TemplateError, UnicodeEncodeError) as error:
            raise UnsupportedError(
                f"the chat template of {name} cannot be read: {first_line(error)}.",
                "Correct it in the source model, or use the model without a template (--raw).",
            ) from error

    def render(self, source: str) -> str:
        """The text of a template that may include ``template``.

        Raises:
            UsageError: The template refuses the conversation.
            UnsupportedError: It exceeds its bounds.
        """
        self._environment.fuel = _FUEL + _FUEL_PER_CHARACTER * len(source)
        try:
            text: str = self._environment.render_str(source, "conversation")
        except AiccError:
            raise
        except Exception as error:  # a template can call our filters with anything
            raise self._render_error(str(error)) from error
        if len(text) > _MAX_OUTPUT + _MAX_GROWTH * len(source):
            raise self._render_error(f"it wrote {len(text)} characters, out of bounds")
        return text

    def _refuse(self, message: object = "") -> None:
        raise UsageError(f"the chat template of {self._name} refuses the conversation: {str(message)[:_MAX_REASON]}.")

    def _render_error(self, detail: str) -> AiccError:
        cause = (detail.strip().rpartition("caused by: ")[2].splitlines() or ["it failed"])[0]
        if "out of fuel" in cause or "out of bounds" in cause or "recursion" in cause:
            return UnsupportedError(
                f"the chat template of {self._name} computes without end: {cause}.",
                "Use the model without a template (--raw).",
            )
        return UsageError(
            f"the chat template of {self._name} cannot render the conversation: {cause}.",
            "Check the roles and contents of its messages.",
        )


def _plain_block(match: re.Match[str]) -> str:
    """``{% generation %}`` marks what a model is trained on; for rendering it is any block."""
    return f"{{%{match[1]} {'endif' if match[2] else 'if true'} {match[3]}%}}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """``tojson`` as Hugging Face defines it: no HTML escapes, Python's own options."""
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise UnsupportedError(f"a chat template indents JSON by {indent}, and at most {_MAX_INDENT} is allowed.")
    pair = (separators[0], separators[1]) if separators is not None else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    """The date and time now, in strftime's format."""
    if not _DATE_FORMAT.fullmatch(form):
        raise UnsupportedError(f"a chat template asks for the date in the format {form[:40]!r}, which is not allowed.")
    return datetime.now().strftime(form)


def limit_memory() -> None:
    """Bound what this process, which runs a template, may take."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on every system; the time limit holds everywhere
        return


def _main() -> None:
    """The child: answer until there is no more to ask."""
    limit_memory()
    renderer: Renderer | None = None
    seconds = SECONDS
    answer: dict[str, Any]
    sys.stdout.buffer.write(_GREETING)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        seconds = request.get("seconds", seconds)
        faulthandler.dump_traceback_later(seconds, exit=True)  # from a thread that waits for nothing
        try:
            if renderer is None:
                renderer = Renderer(request["template"], request["name"])
                answer = {"text": ""}
            else:
                answer = {"text": renderer.render(request["source"])}
        except AiccError as error:
            answer = {"usage": isinstance(error, UsageError), "message": error.message, "remedy": error.remedy}
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
