"""``aicc targets`` and ``aicc doctor``, and the facts about a machine behind them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from aicc_command import Run

from aicc.cli.documents import DoctorDocument, TargetsDocument
from aicc.cli.machine import satisfies
from aicc.cli.output import clean, human_bytes, one_line
from aicc.runtime import machine
from aicc.runtime.errors import UsageError
from aicc.runtime.target import all_targets, find_target


def test_targets_lists_every_target_and_why_one_cannot_run(aicc: Run):
    done = aicc("targets", "--json")
    document = msgspec.json.decode(done.out, type=TargetsDocument)
    rows = {row.name: row for row in document.targets}
    assert list(rows) == list(all_targets())
    assert rows["openvino:cpu"].compiles
    assert rows["openvino:cpu"].runs
    for row in rows.values():
        assert row.description
        assert row.evidence in ("runs", "emulated", "compiled", "prepared")
        assert (row.runs, row.compiles) == (not row.runs_reason, not row.compiles_reason)
        assert not row.runs or all_targets()[row.name].runs_on(machine.processor())
    table = aicc("targets").out
    assert all(part in table for name in rows for part in name.split(":"))
    assert len(table.splitlines()) == 1 + len({target.family for target in all_targets().values()})


def test_targets_of_a_family_are_told_of_one_by_one(aicc: Run):
    table = aicc("targets", "ethos-u").out
    assert table.count("Ethos-U85") == 1  # variants that differ by their number alone are one row
    assert "openvino" not in table
    document = msgspec.json.decode(aicc("targets", "cpu:amx", "--json").out, type=TargetsDocument)
    assert {row.name for row in document.targets} == {name for name in all_targets() if name.startswith("cpu:")}
    done = aicc("targets", "nope")
    assert done.code == 2
    assert "ethos-u, groq" in done.err
    assert "cpu:amx" not in done.err


def test_a_variant_that_is_not_there_is_answered_with_those_of_its_family():
    with pytest.raises(UsageError) as caught:
        find_target("cpu:nope")
    assert "cpu:amx, cpu:avx512-vnni" in caught.value.remedy
    assert "openvino" not in caught.value.remedy


def test_doctor_describes_this_machine(aicc: Run, tmp_path: Path):
    (tmp_path / "aicc" / "models").mkdir(parents=True)
    (tmp_path / "aicc" / "models" / "a.bin").write_bytes(bytes(1000))
    done = aicc("doctor", "--json", env={"XDG_CACHE_HOME": str(tmp_path)})
    document = msgspec.json.decode(done.out, type=DoctorDocument)
    assert document.processor.usable_cores <= len(os.sched_getaffinity(0))
    assert 0 < document.memory_available <= document.memory_total
    assert document.cache.path == str(tmp_path / "aicc")
    assert [(entry.name, entry.bytes) for entry in document.cache.entries] == [("models", 1000)]
    devices = {(device.family, device.name, device.target) for device in document.devices}
    assert {("openvino", "CPU", "openvino:cpu"), ("cpu", "CPU", find_target("cpu").name)} <= devices
    assert {device.family for device in document.devices} == {
        target.family for target in all_targets().values() if target.provider is not None
    }
    assert {"numpy", "openvino", "onnx"} <= {package.name for package in document.packages}
    text = aicc("doctor")
    assert text.code == 0
    assert document.processor.model in text.out


COPIED_FAMILY = """
import sys
import aicc.targets
aicc.targets.__path__.append(sys.argv[1])
from aicc.cli.main import main
sys.exit(main(["targets"]))
"""


def test_a_copied_family_that_was_not_renamed_is_told_which_file_to_change(tmp_path: Path):
    (tmp_path / "zz_copied").mkdir()
    (tmp_path / "zz_copied" / "__init__.py").touch()
    (tmp_path / "zz_copied" / "target.py").write_text("from aicc.targets.null.target import TARGETS\n")
    done = subprocess.run([sys.executable, "-c", COPIED_FAMILY, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "aicc.targets.zz_copied.target defines null:host, which another family has already" in done.stderr
    assert "Give `family` the name of its own folder" in done.stderr


WITHOUT_OPENVINO = """
import sys
sys.modules["openvino"] = None  # importing it raises, as if it were not installed
from aicc.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""


def test_doctor_names_what_is_missing_and_the_remedy():
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPENVINO], capture_output=True, text=True)
    problems = {problem["what"]: problem["remedy"] for problem in json.loads(done.stdout)["problems"]}
    assert "aicc[openvino]" in problems["openvino: OpenVINO is not installed."]


@pytest.mark.parametrize(
    ("installed", "requirement", "met"),
    [
        ("2.4.6", ">=2.0", True),
        ("1.9", ">=1.10", False),
        ("2.13.0+cpu", "==2.13.0", True),
        ("5.6.0", "==5.5.4", False),
        ("1.0rc1", ">=0.9,!=1.1", True),
    ],
)
def test_versions_are_compared_as_numbers(installed: str, requirement: str, met: bool):
    assert satisfies(installed, requirement) is met


def machine_of(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n"


def test_a_container_of_version_2_limits_memory_and_cores(tmp_path: Path):
    group = "sys/fs/cgroup/pod/app"
    root = machine_of(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/app\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "5\n",
            f"{group}/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": "2000000000\n",
            "sys/fs/cgroup/pod/memory.current": "900000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 400000000\n",
            "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
        },
    )
    assert machine.memory(root) == machine.Memory(total=2_000_000_000, available=1_500_000_000)
    assert machine.processor(root).usable_cores == 1


def test_a_container_of_version_1_limits_memory_though_its_path_is_the_hosts(tmp_path: Path):
    root = machine_of(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
        },
    )
    assert machine.memory(root) == machine.Memory(total=3_000_000_000, available=2_000_000_000)


def test_a_processor_is_described_by_what_it_says_of_itself(tmp_path: Path):
    arm = machine_of(tmp_path, {"proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimddp i8mm\n"})
    assert machine.processor(arm).instruction_sets == ("asimd", "asimddp", "i8mm")
    here = machine.processor()
    assert here.model
    assert 1 <= here.usable_cores <= here.cores


def test_a_machine_without_proc_still_has_an_answer(tmp_path: Path):
    assert machine.memory(tmp_path).total > 0
    assert machine.processor(tmp_path).architecture


def test_sizes_are_read_at_a_glance():
    sizes = [0, 999, 1000, 98_362_432, 999_600_000, 4_000_000_000_000]
    assert [human_bytes(size) for size in sizes] == ["0 B", "999 B", "1.00 kB", "98.4 MB", "1.00 GB", "4.00 TB"]


def test_names_from_files_cannot_drive_the_terminal():
    assert clean("a\x1b[31mb\nc") == "a\ufffd[31mb\nc"
    assert one_line("a\n  b\tc\x07") == "a b c\ufffd"
