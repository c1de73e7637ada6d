"""What this machine has: processor, the cores and the memory this process may really use.

Inside a container the numbers of the whole host mislead, so the limits of the control groups
(version 1 and 2) count here. Everything is read from ``/proc`` and ``/sys``; on systems without
them the answers fall back to what Python knows.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path("/")
INSTRUCTION_SETS = (
    # x86, in the order they appeared
    "sse4_2", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    # Arm
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    # RISC-V
    "rvv",
)  # fmt: skip


class Processor(msgspec.Struct, frozen=True):
    """The processor as it describes itself.

    Attributes:
        model: Its trade name, or the architecture if it does not say.
        architecture: ``x86_64``, ``aarch64``, …
        instruction_sets: Those of :data:`INSTRUCTION_SETS` it has, in that order.
        cores: Logical processors of the machine.
        usable_cores: What affinity and the control group's quota leave to this process; a
            quota of 1.5 processors counts as 2 because threads come whole.
    """

    model: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores: int
    usable_cores: int


class Memory(msgspec.Struct, frozen=True):
    """Bytes of memory this process may use in all, and those still free for it."""

    total: int
    available: int


def processor(root: Path = ROOT) -> Processor:
    """Describe the processor; ``root`` is where ``proc`` and ``sys`` are mounted."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if "amx_tile" in flags and root == ROOT and not _may_use_tiles():
        flags = {name for name in flags if not name.startswith("amx")}
    # "rv64imafdcv_zicsr_...": one letter for each extension, up to the first underscore.
    if "v" in fields.get("isa", "").partition("_")[0].removeprefix("rv64"):
        flags.add("rvv")
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return Processor(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        cores=cores,
        usable_cores=max(1, min([usable, *_cpu_quotas(root)])),
    )


def _may_use_tiles() -> bool:
    """Ask Linux for AMX's registers, as every process that uses them has to: some sandboxes refuse."""
    arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0)


def memory(root: Path = ROOT) -> Memory:
    """Memory of the machine, or of the tightest control group this process is in."""
    fields: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            fields[key] = int(number[0]) * 1024
    total = fields.get("MemTotal") or _physical_memory()
    available = fields.get("MemAvailable", total)
    for limit, used in _memory_limits(root):
        if limit < total:
            total = limit
        available = min(available, max(0, limit - used))
    return Memory(total, available)


def peak_rss_bytes() -> int:
    """Most memory this process has had resident so far, mapped files included; 0 if unknown."""
    for line in _text(ROOT / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_free_memory() -> None:
    """Give freed heap back to the system, where the C library can (glibc).

    Parsing a graph or a tokenizer frees tens of megabytes that the heap would keep to itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def cache_directory() -> Path:
    """Where aicc keeps what it can make or fetch again; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "aicc"


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of each control group that has a limit."""
    for folder in _control_groups(root, "memory"):
        for limit_name, used_name, cached_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
            if not (limit.isdigit() and used.isdigit()):
                continue
            statistics = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
            yield int(limit), max(0, int(used) - int(statistics.get(cached_name, 0)))


def _cpu_quotas(root: Path) -> Iterator[int]:
    """Whole processors each control group with a quota grants."""
    for folder in _control_groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            yield -(-int(quota) // int(period))


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its ancestors, for either version.

    A container may see its own group mounted as the root, under a path that is the host's, so
    folders that are not there are skipped by reading nothing from them.
    """
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            mount = base / controller
        elif number == "0" and not controllers:
            mount = base
        else:
            continue
        folder = mount / path.lstrip("/")
        while folder != mount and mount in folder.parents:
            yield folder
            folder = folder.parent
        yield mount


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
