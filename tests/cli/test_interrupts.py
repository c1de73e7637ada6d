"""Ctrl-C, SIGTERM and SIGKILL at the worst moment: quiet, quick, nothing half-made."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aicc_command import AICC, Run, save_onnx
from onnx import helper

from aicc.runtime.artifact import Artifact


@contextmanager
def compile_held_before_packaging(folder: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A compile that has begun its artifact and cannot go on: its graph dump is a pipe nobody reads.

    Gives the process, and the output it was asked for.
    """
    model, dump, output = folder / "long.onnx", folder / "dump", folder / "out" / "made.aicc"
    # As text the graph must be longer than what a pipe holds.
    nodes = [helper.make_node("Sin", [f"x{i}"], [f"x{i + 1}"]) for i in range(2000)]
    save_onnx(model, nodes, {"x0": [4]}, {"x2000": [4]})
    dump.mkdir()
    output.parent.mkdir(exist_ok=True)
    pipe = dump / "3-lower.txt"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [AICC, "compile", model, "-o", output, "--dump-graph", dump],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("rb") as reader:  # returns when the compile opens the other end
        reader.read(1)
        assert any(path.name.startswith(".made.aicc") for path in output.parent.iterdir())
        yield process, output
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_compile_leaves_what_was_there_before(
    aicc: Run, tmp_path: Path, tensors_artifact: Path, number: int, code: int
):
    shutil.copytree(tensors_artifact, tmp_path / "out" / "made.aicc")
    with compile_held_before_packaging(tmp_path) as (process, output):
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert "aicc:" not in err
    assert [path.name for path in output.parent.iterdir()] == ["made.aicc"]
    assert aicc("inspect", output, "--verify").code == 0


def test_a_killed_compile_leaves_no_artifact_and_the_next_one_clears_up(aicc: Run, tmp_path: Path, onnx_file: Path):
    with compile_held_before_packaging(tmp_path) as (process, output):
        process.kill()
        process.wait()
        assert not output.exists()
    assert aicc("compile", onnx_file, "-o", output).code == 0
    assert [path.name for path in output.parent.iterdir()] == ["made.aicc"]


def test_ctrl_c_ends_an_answer_quietly(demo_artifact: Artifact):
    words = [AICC, "run", demo_artifact.path, "Count to a thousand.", "--max-tokens", "5000", "--temperature", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(4)  # it is talking
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


PATIENCE_S = 120  # a screen that shows nothing new for so long will not
PRESS_AGAIN_S = 2


class Terminal:
    """A person at a terminal with ``aicc`` running on it."""

    def __init__(self, *words: object) -> None:
        self._screen, device = pty.openpty()
        self.shown = ""
        command = ["setsid", "--ctty", AICC, *map(str, words)]
        self.process = subprocess.Popen(command, stdin=device, stdout=device, stderr=device)
        os.close(device)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Read the screen until ``pattern`` appears, and forget it and what came before."""
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._screen], [], [], PATIENCE_S)
            assert ready, f"{pattern!r} did not appear; the screen was: {self.shown}"
            try:
                new = os.read(self._screen, 1000)
            except OSError as error:  # the program has ended
                raise AssertionError(f"{pattern!r} never appeared; the screen was: {self.shown}") from error
            self.shown += new.decode(errors="replace")
        self.shown = self.shown[found.end() :]

    def press_ctrl_c_for(self, pattern: str) -> None:
        """Press Ctrl-C, again if nothing happens, until the screen shows ``pattern``.

        Python reads a line with a ``select`` that a signal does not end if it comes in the instant
        between the prompt and that call; the next key does.
        """
        for _ in range(PATIENCE_S // PRESS_AGAIN_S):
            self.type("\x03")
            if select.select([self._screen], [], [], PRESS_AGAIN_S)[0]:
                break
        self.wait_for(pattern)

    def close(self) -> int:
        code = self.process.wait(timeout=60)
        os.close(self._screen)
        return code


def test_ctrl_c_in_a_chat_stops_the_answer_and_not_the_program(demo_artifact: Artifact):
    terminal = Terminal("chat", demo_artifact.path, "--temperature", "0", "--max-tokens", "5000")
    terminal.wait_for("> ")
    terminal.type("Write a very long story about the sea.\n")
    terminal.wait_for("the sea\\.\r\n")  # the echo of what was typed
    terminal.wait_for("[a-z]{3}")  # the model speaks
    terminal.type("\x03")
    terminal.wait_for("\\(stopped\\)")
    terminal.wait_for("> ")
    terminal.press_ctrl_c_for("> ")  # at the prompt it only starts a new line
    terminal.type("/reset\n")
    terminal.wait_for("forgotten")
    terminal.type("/exit\n")
    assert terminal.close() == 0


STUCK = """
import ctypes, signal, sys
from pathlib import Path
from aicc.cli.stopping import stoppable
from aicc.compiler.disk import make_staging, remove_staging

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)  # so that it does not matter whether the lock is reached before the signal
with stoppable(remove_staging):
    make_staging(Path(sys.argv[1]) / "made.aicc")
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(128)  # of zeros: unlocked
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # the second time for ever, and no signal ends it
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_native_code_that_does_not_return_is_ended_and_leaves_nothing(tmp_path: Path, number: int, code: int):
    process = subprocess.Popen([sys.executable, "-c", STUCK, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []
