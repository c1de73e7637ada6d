"""An artifact is either complete or not there, however the compile ends."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import msgspec
import pytest
from artifact_sample import fill, small_manifest, small_report, write_sample

from aicc.compiler.disk import scratch
from aicc.compiler.package import ArtifactWriter
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import IntegrityError, ResourceError, UsageError

HERE = Path(__file__).parent
BEGIN = """
    import os, sys
    from pathlib import Path
    from aicc.compiler.package import ArtifactWriter
    from aicc.runtime.errors import AiccError
    from artifact_sample import fill, small_manifest, small_report
    output = Path(sys.argv[1])
"""
HOLD_HALF_WRITTEN = """
    with ArtifactWriter(output) as writer:
        fill(writer)
        writer.stage(small_manifest(), small_report())
        print("half written", flush=True)
        sys.stdin.read()
"""


def start(program: str, output: Path, *before: str, **options: object) -> subprocess.Popen:
    """A compile in a process of its own, so that it can run out of things or be killed."""
    code = textwrap.dedent(BEGIN) + textwrap.dedent(program)
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, output],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        **options,
    )


def half_written(output: Path) -> subprocess.Popen:
    process = start(HOLD_HALF_WRITTEN, output)
    assert process.stdout.readline() == "half written\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_compile_leaves_nothing_at_the_output(tmp_path):
    process = half_written(tmp_path / "a.aicc")
    process.kill()
    process.communicate()
    assert not (tmp_path / "a.aicc").exists()
    with pytest.raises(UsageError):
        Artifact.open(tmp_path / "a.aicc")


def test_the_next_compile_removes_what_a_killed_one_left(tmp_path):
    process = half_written(tmp_path / "a.aicc")
    process.kill()
    process.communicate()
    assert names(tmp_path)[0].startswith(".a.aicc.tmp-")
    write_sample(tmp_path / "a.aicc")
    assert names(tmp_path) == ["a.aicc"]


def test_what_a_vendors_tool_wrote_in_a_killed_compile_is_removed_by_the_next_that_runs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = f"""
import sys, tempfile
tempfile.tempdir = {str(tmp_path)!r}
from aicc.compiler.disk import scratch
with scratch("tool") as folder:
    (folder / "intermediate").touch()
    print("made", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "made\n"
    (its,) = tmp_path.iterdir()
    with scratch("tool") as folder:
        assert {its, folder} == set(tmp_path.iterdir())  # the other still runs
    process.kill()
    process.communicate()
    assert names(its) == ["intermediate"]
    with scratch("tool") as folder:
        assert [folder] == list(tmp_path.iterdir())
        assert folder.stat().st_mode & 0o077 == 0
    assert names(tmp_path) == []


def test_a_compile_leaves_others_to_the_same_output_alone(tmp_path):
    other = half_written(tmp_path / "a.aicc")
    (its_directory,) = tmp_path.iterdir()
    write_sample(tmp_path / "a.aicc")
    assert names(tmp_path) == [its_directory.name, "a.aicc"]
    other.communicate()
    assert names(tmp_path) == ["a.aicc"]


def test_leftovers_of_other_outputs_and_similar_names_are_not_touched(tmp_path):
    for name in (".b.aicc.tmp-0123abcd", ".a.aicc.tmp-notes", ".a.aicc.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.aicc.tmp-01234567").write_text("a file, not a directory")
    before = names(tmp_path)
    write_sample(tmp_path / "a.aicc")
    assert names(tmp_path) == sorted([*before, "a.aicc"])


HOLD_SCRATCH = """
    from aicc.compiler.disk import scratch
    with scratch("reference") as folder:
        (folder / "model.data").write_bytes(b"many")
        print(folder, flush=True)
        sys.stdin.read()
"""


def test_temporary_files_of_a_killed_compile_are_removed_by_the_next_and_those_of_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed, alive = (start(HOLD_SCRATCH, tmp_path) for _ in range(2))
    left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive))
    killed.kill()
    killed.communicate()
    assert (left / "model.data").exists()
    with scratch("reference") as own:
        assert names(tmp_path) == sorted([own.name, used.name])
        assert own.stat().st_mode & 0o077 == 0
        with scratch("other"):
            assert own.exists()
    alive.communicate()
    assert names(tmp_path) == []


def test_without_a_place_for_temporary_files_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ResourceError, match="TMPDIR"), scratch("reference"):
        pass


def test_ctrl_c_removes_everything_at_once(tmp_path):
    process = half_written(tmp_path / "a.aicc")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert "KeyboardInterrupt" in stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_everything_is_removed_and_it_is_raised_on(tmp_path, error):
    def compile_and_fail() -> None:
        with ArtifactWriter(tmp_path / "a.aicc") as writer:
            fill(writer)
            raise error

    with pytest.raises(error):
        compile_and_fail()
    assert names(tmp_path) == []


def test_without_commit_nothing_is_made(tmp_path):
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        fill(writer)
    assert names(tmp_path) == []


def test_absurd_facts_are_refused_before_anything_is_published(tmp_path):
    def commit_negative_weights() -> None:
        with ArtifactWriter(tmp_path / "a.aicc") as writer:
            fill(writer)
            memory = msgspec.structs.replace(small_manifest().memory, weight_bytes=-1)
            writer.commit(msgspec.structs.replace(small_manifest(), memory=memory), small_report())

    with pytest.raises(IntegrityError, match=r"memory\.weight_bytes"):
        commit_negative_weights()
    assert names(tmp_path) == []


def test_an_existing_artifact_is_replaced_and_the_old_one_is_gone(tmp_path):
    old = write_sample(tmp_path / "a.aicc")
    mapped = old.weights()  # as a server holds it
    with ArtifactWriter(tmp_path / "a.aicc") as writer:
        fill(writer)
        writer.commit(msgspec.structs.replace(small_manifest(), name="newer"), small_report())
    assert Artifact.open(tmp_path / "a.aicc").manifest.name == "newer"
    assert names(tmp_path) == ["a.aicc"]
    assert bytes(mapped[:8])


def test_a_compile_that_fails_keeps_the_artifact_that_was_there(tmp_path):
    write_sample(tmp_path / "a.aicc")
    process = half_written(tmp_path / "a.aicc")
    process.kill()
    process.communicate()
    Artifact.open(tmp_path / "a.aicc").verify()


def test_systems_that_cannot_exchange_names_replace_in_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("aicc.compiler.disk._exchange", lambda first, second: False)
    write_sample(tmp_path / "a.aicc")
    write_sample(tmp_path / "a.aicc")
    Artifact.open(tmp_path / "a.aicc").verify()
    assert names(tmp_path) == ["a.aicc"]


def test_an_output_that_is_a_link_replaces_what_it_points_at(tmp_path):
    write_sample(tmp_path / "real.aicc")
    (tmp_path / "link.aicc").symlink_to("real.aicc")
    write_sample(tmp_path / "link.aicc")
    assert (tmp_path / "link.aicc").is_symlink()
    assert names(tmp_path) == ["link.aicc", "real.aicc"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a.aicc").mkdir()
    write_sample(tmp_path / "a.aicc")
    assert names(tmp_path) == ["a.aicc"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_text("thesis"), "is a file"),
        (lambda path: (path.mkdir(), (path / "thesis.tex").touch()), "not an artifact"),
        (lambda path: (write_sample(path), (path / "thesis.tex").touch()), "holds 'thesis.tex'"),
    ],
)
def test_what_is_not_an_artifact_is_never_replaced(tmp_path, make, problem):
    make(tmp_path / "a.aicc")
    with pytest.raises(UsageError, match=problem), ArtifactWriter(tmp_path / "a.aicc"):
        pass
    assert names(tmp_path) == ["a.aicc"]


def test_what_appears_at_the_output_during_a_compile_is_not_replaced_either(tmp_path):
    def commit_over_a_folder() -> None:
        with ArtifactWriter(tmp_path / "a.aicc") as writer:
            fill(writer)
            (tmp_path / "a.aicc").mkdir()
            (tmp_path / "a.aicc" / "thesis.tex").touch()
            writer.commit(small_manifest(), small_report())

    with pytest.raises(UsageError, match="not an artifact"):
        commit_over_a_folder()
    assert names(tmp_path / "a.aicc") == ["thesis.tex"]


@pytest.mark.parametrize("output", ["file/a.aicc", "x" * 250])
def test_an_output_that_cannot_be_made_is_a_usage_error(tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write_sample(tmp_path / output)
    assert names(tmp_path) == ["file"]


def test_missing_parent_folders_are_made(tmp_path):
    write_sample(tmp_path / "build" / "models" / "a.aicc")


def test_a_size_the_disk_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(ResourceError, match=rf"a\.aicc.*{1 << 60:,} bytes more are needed"),
        ArtifactWriter(tmp_path / "a.aicc", expected_bytes=1 << 60),
    ):
        pass
    assert names(tmp_path) == []


FILL_THE_DISK = """
    try:
        with ArtifactWriter(output) as writer:
            STEP
    except AiccError as error:
        print(error.exit_code, error.message)
    print(os.listdir(output.parent))
"""
STEPS = {
    "a constant": "writer.weights.add(os.urandom(4 << 20))",
    "the graph": "fill(writer)",
    "a lowering's own file": "(writer.variant_directory('cpu') / 'program.bin').write_bytes(bytes(1 << 20))",
}


def mount_command() -> list[str]:
    """What starts a program in a mount namespace of its own, or skips where the system forbids it."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        probe = "mount -t tmpfs -o size=64k tmpfs /mnt"
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "sh", "-c", probe], capture_output=True).returncode == 0
        ):
            return command
    pytest.skip("this system lets no test mount a file system")


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path, step):
    """On a real file system of 16 kB, in memory."""
    mount = f'mount -t tmpfs -o size=16k tmpfs "{tmp_path}" && exec "$0" "$@"'
    program = FILL_THE_DISK.replace("STEP", STEPS[step])
    stdout, stderr = start(program, tmp_path / "a.aicc", *mount_command(), "sh", "-c", mount).communicate()
    assert not stderr
    message, listing = stdout.splitlines()
    assert message.startswith(f"5 {tmp_path}")
    assert "are free" in message
    assert listing == "[]"


def test_a_limit_on_file_sizes_is_a_resource_error_and_leaves_nothing(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
    program = textwrap.dedent(limit) + textwrap.dedent(FILL_THE_DISK.replace("STEP", STEPS["a constant"]))
    stdout, stderr = start(program, tmp_path / "a.aicc").communicate()
    assert not stderr
    message, listing = stdout.splitlines()
    assert message.startswith(f"5 {tmp_path}/a.aicc/weights/model.bin")
    assert f"{4 << 20:,} bytes more are needed" in message
    assert listing == "[]"
