"""Does a chat template render in the runtime as its author meant it?

Templates are written for Jinja2 as transformers sets it up; the runtime renders them with
minijinja. Both render a set of conversations here, and every difference is said. The template is
a program from a model file: the runtime renders it in a process of its own with little memory and
little time, and so does Jinja2 here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from aicc.runtime.chat import ChatTemplate
from aicc.runtime.errors import UsageError
from aicc.runtime.template_process import limit_memory

_SECONDS = 10  # for all conversations
_EXCERPT = 40  # characters shown of a difference
_LONGEST_ERROR = 200

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The "weather" <now> & here',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "København"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


def _says(role: str, content: object = "", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


# Name, messages, and what else the template is given.
CONVERSATIONS: tuple[tuple[str, list[dict[str, object]], dict[str, object]], ...] = (
    ("one question", [_says("user", "What is the capital of France?")], {}),
    ("a system message", [_says("system", "Be brief."), _says("user", "Hi")], {}),
    ("several turns", [_says("user", "Hi"), _says("assistant", "Hello!"), _says("user", "And now?")], {}),
    ("a finished turn", [_says("user", "Hi"), _says("assistant", " Hello! ")], {"add_generation_prompt": False}),
    ("empty content", [_says("system"), _says("user")], {}),
    ("whitespace and markup", [_says("user", " \n\t<b>&'\"{{ x }}</b>{% if %} \r\n ")], {}),
    ("other scripts", [_says("user", "Ünï 你好 🙂 עברית \u00a0\u200d\u2028")], {}),
    ("roles that do not alternate", [_says("user", "a"), _says("user", "b")], {}),
    ("content in parts", [_says("user", [{"type": "text", "text": "Hi"}])], {}),
    ("tools", [_says("user", "Weather?")], {"tools": [_TOOL]}),
    (
        "a tool's answer",
        [
            _says("user", "Weather?"),
            _says("assistant", "", tool_calls=[_CALL]),
            _says("tool", '{"sky": "clear"}', name="get_weather", tool_call_id="call00001"),
        ],
        {"tools": [_TOOL]},
    ),
)

Rendering = dict[str, str]  # {"text": …} or {"error": …}


def check_template(template: str, config: dict[str, str]) -> list[str]:
    """Render the conversations with both engines and compare.

    Args:
        template: Jinja text.
        config: Strings the template may use (``bos_token``, …).

    Returns:
        A note for the report: that all is equal, or what is not.

    Raises:
        UnsupportedError: The runtime cannot read the template, or rendering it takes too much
            time or memory.
    """
    runtime = ChatTemplate(template, "the source", config)
    runtime.check()
    ours = _by_runtime(runtime)
    theirs = _by_jinja(template, config)
    if len(theirs) < len(CONVERSATIONS):
        name = CONVERSATIONS[len(theirs)][0]
        return [f"chat template: could not be compared with Jinja2, which did not finish {name!r}"]
    return _compare(ours, theirs)


def _by_runtime(template: ChatTemplate) -> list[Rendering]:
    renderings: list[Rendering] = []
    for _, messages, extra in CONVERSATIONS:
        try:
            renderings.append({"text": template.render(messages, **_context(extra))})
        except UsageError as error:  # it refuses this conversation
            renderings.append({"error": error.message})
    template.close()
    return renderings


def _by_jinja(template: str, config: dict[str, str]) -> list[Rendering]:
    """As many conversations as Jinja2 finishes in its time."""
    command = [sys.executable, "-P", "-m", "aicc.compiler.template_check"]
    request = json.dumps({"template": template, "config": config})
    try:
        child = subprocess.run(
            command, input=request, capture_output=True, text=True, encoding="utf-8", timeout=_SECONDS, check=False
        )
        output = child.stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
    return [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]


def _compare(ours: list[Rendering], theirs: list[Rendering]) -> list[str]:
    different = {
        name: _difference(our, their)
        for (name, _, _), our, their in zip(CONVERSATIONS, ours, theirs, strict=True)
        if our.get("text") != their.get("text")  # refused by both is the same
    }
    if not different:
        return [f"chat template: renders as Jinja2 does on {len(ours)} conversations"]
    first = next(iter(different))
    return [
        f"chat template: {len(different)} of {len(ours)} conversations render differently from Jinja2 "
        f"({', '.join(different)}); {first!r} gives {different[first]}"
    ]


def _difference(our: Rendering, their: Rendering) -> str:
    if "error" in our or "error" in their:
        return f"{_outcome(our)}, where Jinja2 gives {_outcome(their)}"
    text, expected = our["text"], their["text"]
    shorter = min(len(text), len(expected))
    at = next((i for i in range(shorter) if text[i] != expected[i]), shorter)
    return f"{text[at:][:_EXCERPT]!r}, where Jinja2 writes {expected[at:][:_EXCERPT]!r}, at character {at}"


def _outcome(rendering: Rendering) -> str:
    return f"an error ({rendering['error'][:_LONGEST_ERROR]})" if "error" in rendering else "text"


def _context(extra: dict[str, object]) -> dict[str, Any]:
    return {"add_generation_prompt": True, "tools": None, **extra}


def _main() -> None:
    """The child: Jinja2 on every conversation, one JSON line a rendering, as they come."""
    limit_memory()
    request = json.load(sys.stdin)
    render = _jinja(request["template"], request["config"])
    for _, messages, extra in CONVERSATIONS:
        try:
            rendering = {"text": render(messages=messages, **_context(extra))}
        except Exception as error:  # whatever a template makes the engine raise is an outcome
            rendering = {"error": str(error)[:_LONGEST_ERROR] or type(error).__name__}
        print(json.dumps(rendering), flush=True)


def _jinja(template: str, config: dict[str, str]) -> Callable[..., str]:
    """Jinja2 as ``transformers.utils.chat_template_utils`` sets it up."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` blocks, which only mean something for training."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        message = str(error)

        def fail(**context: object) -> str:
            raise ValueError(message)

        return fail
    return lambda **context: compiled.render(**{**config, "documents": None, **context})


if __name__ == "__main__":
    _main()
