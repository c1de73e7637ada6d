"""The manners of the command: help, usage errors, exit codes, stdout and stderr."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import click
import pytest
from aicc_command import AICC, Run
from click.testing import CliRunner

from aicc.cli.main import cli
from aicc.cli.reference import DOCUMENTS, ELSEWHERE, field_meanings, fields, reference

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = ["pull", "check", "plan", "compile", "run", "chat", "serve", "inspect", "bench", "eval", "targets", "doctor"]


def test_alone_it_shows_what_there_is_in_the_order_a_newcomer_needs_it(aicc: Run):
    done = aicc()
    assert done.code == 0
    assert [line.split()[0] for line in done.out.split("Commands:\n")[1].splitlines()] == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_in_sentences(name: str):
    help_text = CliRunner().invoke(cli, [name, "--help"]).output
    assert help_text.startswith(f"Usage: cli {name}")
    assert cli.commands[name].help.split("\n\n")[0].replace("\n", " ").rstrip().endswith((".", "there is."))
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert not option.help[0].islower(), option.name


def test_the_page_about_the_command_line_is_what_the_commands_say():
    assert DOCS.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("kind", [kind for kinds in DOCUMENTS.values() for kind in kinds], ids=lambda k: k.__name__)
def test_every_field_of_every_document_is_explained(kind: type):
    assert kind not in ELSEWHERE
    assert [name for name, _ in fields(kind)] == list(field_meanings(kind))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["run"], "ARTIFACT"),
        (["run", "a.aicc", "hi", "--frob"], "--frob"),
        (["run", "a.aicc", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["run", "a.aicc", "hi", "--threads", "0"], "--threads"),
        (["serve", "a.aicc", "--port", "65536"], "--port"),
        (["compile", "m.gguf", "--quant", "int3"], "--quant"),
        (["compile", "m.gguf", "--stop-after", "lunch"], "--stop-after"),
        (["compile", "m.gguf", "--no-measure", "--max-kl", "0.1"], "--max-kl"),
        (["compile", "m.gguf", "--max-kl", "nan"], "--max-kl"),
        (["compile", "m.gguf", "--target", "abacus"], "abacus"),
        (["check", "m.onnx", "--size", "n=" + 5000 * "1"], "--size"),
        (["check", "m.onnx", "--size", "n=1", "--size", "n=2"], "'n' is given twice"),
        (["check", "~nobody-of-this-name/m.onnx"], "~nobody-of-this-name"),
        (["check", "no/such/model/here"], "no/such/model/here"),
        (["pull", "no-such-model"], "no-such-model"),
        (["eval", "a.aicc"], "--reference"),
        (["inspect", "nothing.aicc"], "nothing.aicc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_that_names_what_is_wrong(aicc: Run, words: list[str], named: str):
    done = aicc(*words)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("aicc: ")
    assert named in done.err


def test_help_imports_nothing_heavy():
    program = "import sys; from aicc.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {"numpy", "msgspec", "rich", "onnx", "onnx_ir", "torch", "openvino", "tokenizers"}


def test_a_reader_that_goes_away_is_no_error():
    writer = subprocess.Popen([AICC, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() in (0, 141)


BUG = """
import sys
from aicc.cli import machine, main
def examine():
    raise ZeroDivisionError("two\\nlines")
machine.examine = examine
sys.exit(main.main(["doctor"]))
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_one_line_and_its_traceback_can_be_had(debug: bool):
    done = subprocess.run(
        [sys.executable, "-c", BUG], capture_output=True, text=True, env={"AICC_DEBUG": "1"} if debug else {}
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("aicc: ZeroDivisionError: two lines (this is a bug")
    assert "AICC_DEBUG=1" in last
    assert ("Traceback" in done.stderr) == debug


def test_the_module_runs_like_the_command():
    assert importlib.util.find_spec("aicc.cli.main") is not None
    done = subprocess.run([sys.executable, "-m", "aicc.cli.main", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("aicc 0.")
