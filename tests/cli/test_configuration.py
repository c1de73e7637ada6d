"""Options of `aicc serve` from the command line, the environment and two files, in this order."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from aicc_command import Run
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aicc.cli.main import cli
from aicc.runtime import server
from aicc.runtime.errors import UsageError

SOURCES = ("command line", "environment", "folder", "home")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an empty one for the user's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg" / "aicc").mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith("AICC_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `aicc serve` would have served with."""
    options: dict[str, object] = {}
    monkeypatch.setattr(server, "serve", lambda artifacts, **given: options.update(given))
    return options


@pytest.mark.parametrize("best", range(len(SOURCES)))
def test_the_nearest_source_wins(
    folder: Path, served: dict[str, object], monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    given = SOURCES[best:]
    if "home" in given:
        (folder / "xdg" / "aicc" / "config.toml").write_text("[serve]\nport = 4\nthreads = 1\n")
    if "folder" in given:
        (folder / "aicc.toml").write_text("[serve]\nport = 3\n")
    if "environment" in given:
        monkeypatch.setenv("AICC_PORT", "2")
    done = CliRunner().invoke(
        cli, ["serve", "a.aicc", *(["--port", "1"] if "command line" in given else [])], catch_exceptions=False
    )

    assert done.exit_code == 0
    assert served["port"] == best + 1
    assert served["threads"] == 1  # what only the farthest gives, stays


def test_every_kind_of_option_can_stand_in_a_file(folder: Path, served: dict[str, object]) -> None:
    (folder / "xdg" / "aicc" / "config.toml").write_text(
        '[serve]\nhost = "::1"\ninsecure = true\nkv-tokens = 64\nidle-seconds = 5\nrequest-seconds = 2.5\n'
        'cors-origin = ["http://a", "http://b"]\napi-key-file = "keys"\ntls-key = "/etc/key"\nmax-sequences = 3\n'
        "max-body-bytes = 9\nbody-seconds = 4\n"
    )
    done = CliRunner().invoke(cli, ["serve", "a.aicc"], catch_exceptions=False)

    assert done.exit_code == 0
    limits = served.pop("limits")
    assert limits == server.Limits(sequences=3, body_bytes=9, body_seconds=4, request_seconds=2.5)
    assert served["host"] == "::1"
    assert served["insecure"] is True
    assert served["kv_tokens"] == 64
    assert served["cors_origins"] == ("http://a", "http://b")
    assert served["api_key_file"] == folder / "xdg" / "aicc" / "keys"  # beside the file that names it
    assert served["tls_key"] == Path("/etc/key")
    assert "config.toml" in done.stderr  # nothing comes from a file unsaid


def test_lists_and_switches_in_the_environment(
    folder: Path, served: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AICC_CORS_ORIGIN", "http://a http://b")
    monkeypatch.setenv("AICC_INSECURE", "1")
    CliRunner().invoke(cli, ["serve", "a.aicc"], catch_exceptions=False)

    assert served["cors_origins"] == ("http://a", "http://b")
    assert served["insecure"] is True


BAD = [
    ("[serve]\nprot = 1\n", "'prot'"),
    ("[server]\nport = 1\n", "'server'"),
    ("port = 1\n", "'port'"),
    ("serve = 1\n", "serve"),
    ("[serve]\nport = true\n", "port"),
    ("[serve]\nport = 1.5\n", "port"),
    ("[serve]\nport = 70000\n", "port"),
    ('[serve]\nport = "80"\n', "port"),
    ('[serve]\ninsecure = "no"\n', "insecure"),
    ("[serve]\nhost = 1\n", "host"),
    ("[serve]\nhost = [1]\n", "host"),
    ('[serve]\nhost = ["::1"]\n', "host"),
    ("[serve]\ncors-origin = [1]\n", "cors-origin"),
    ("[serve]\nidle-seconds = nan\n", "idle-seconds"),
    ("[serve]\nidle-seconds = -1\n", "idle-seconds"),
    ("[serve]\nkv_tokens = 5\n", "'kv_tokens'"),
    ("[serve]\nhelp = true\n", "'help'"),
    ("[serve\n", "TOML"),
    ("[serve]\nport = 1\nport = 2\n", "TOML"),
    ("a = " + "[" * 5000, "TOML"),
    ("\0", "TOML"),
]


@pytest.mark.parametrize(("content", "named"), BAD, ids=[content[:24] for content, _ in BAD])
def test_a_mistake_in_a_file_is_one_line_that_names_file_and_key(
    folder: Path, aicc: Run, content: str, named: str
) -> None:
    (folder / "aicc.toml").write_text(content)
    done = aicc("serve", "a.aicc")

    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "aicc.toml" in done.err
    assert named in done.err


@given(st.binary(max_size=60))
def test_no_file_is_a_bug(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(b"[serve]\n" + content)
    command = cli.commands["serve"]
    with suppress(UsageError):
        command._table(path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("unreadable", ["a folder", "no text"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, aicc: Run, unreadable: str) -> None:
    if unreadable == "a folder":
        (folder / "aicc.toml").mkdir()
    else:
        (folder / "aicc.toml").write_bytes(b"\xff\xfe\x00")
    done = aicc("serve", "a.aicc")

    assert done.code == 2
    assert "aicc.toml" in done.err


def test_help_is_there_whatever_the_files_say(folder: Path, aicc: Run) -> None:
    (folder / "aicc.toml").write_text("[[[")

    assert "aicc.toml" in aicc("serve", "--help").out


def test_other_commands_do_not_look_at_the_files(folder: Path, aicc: Run) -> None:
    (folder / "aicc.toml").write_text("[[[")

    assert aicc("targets").code == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--api-key-file", "missing"], "missing"),
        (["--tls-certificate", "missing", "--tls-key", "missing"], "missing"),
        (["--tls-key", "missing"], "--tls-certificate"),
        (["--cors-origin", "*"], "'*'"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--access-log", "no/folder/log"], "no/folder/log"),
        (["--reproducible", "--speculate"], "exclude each other"),
        (["--reproducible", "--draft", "small.aicc"], "exclude each other"),
        (["--speculate", "--draft", "small.aicc"], "exclude each other"),
        (["--request-seconds", "inf"], "--request-seconds"),
        (["--request-seconds", "0"], "--request-seconds"),
        (["--max-sequences", "0"], "--max-sequences"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_are_refused_before_the_artifact_is_opened(
    folder: Path, aicc: Run, words: list[str], named: str
) -> None:
    done = aicc("serve", "nowhere.aicc", *words)

    assert done.code == 2
    assert done.err.count("\n") == 1
    assert named in done.err


def test_a_port_in_use_is_named(folder: Path, aicc: Run, demo_artifact: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = aicc("serve", demo_artifact.path, "--port", port)  # type: ignore[attr-defined]

    assert done.code == 2
    assert f"port {port} (Address already in use)" in done.err
