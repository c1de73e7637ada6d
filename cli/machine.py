"""What ``aicc targets`` and ``aicc doctor`` find out, as the documents they print with ``--json``."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from aicc.cli.documents import (
    CacheEntry,
    CacheInfo,
    DeviceInfo,
    DoctorDocument,
    PackageInfo,
    Problem,
    ProcessorInfo,
    TargetInfo,
    TargetsDocument,
)
from aicc.runtime import machine
from aicc.runtime.errors import AiccError
from aicc.runtime.provider import provider_of
from aicc.runtime.target import Target, all_targets, find_target, load_object

LOW_DISK = 2_000_000_000  # bytes; a small model with its artifact
LOW_MEMORY = 1_000_000_000  # bytes; the smallest decoder with its KV cache


def list_targets(family: str | None = None) -> TargetsDocument:
    """Every target of this installation, or of a family, tried out as far as that costs nothing.

    Raises:
        UsageError: There is no such family.
    """
    if family is not None:
        family = find_target(family).family
    rows = []
    for target in all_targets().values():
        if family not in (None, target.family):
            continue
        cannot_compile, cannot_run = why_not_compile(target), why_not_run(target)
        rows.append(
            TargetInfo(
                name=target.name,
                description=target.description,
                compiles=not cannot_compile,
                compiles_reason=cannot_compile,
                runs=not cannot_run,
                runs_reason=cannot_run,
                evidence=target.evidence,
                device=target.device,
                extra=target.extra,
            )
        )
    return TargetsDocument(targets=rows)


def by_family(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that begin with a target's name; those of a family that say the same become one, with all their names."""
    variants: dict[tuple[str, ...], list[str]] = {}
    for name, *said in rows:
        family, _, variant = name.partition(":")
        variants.setdefault((family, *said), []).append(variant)
    return [(f"{family}:{', '.join(names)}", *said) for (family, *said), names in variants.items()]


def families(targets: Iterable[TargetInfo]) -> list[tuple[str, ...]]:
    """A row for each family: its name, how many variants compile and run here, how far they are shown, their names."""
    members: dict[str, list[TargetInfo]] = {}
    for target in targets:
        members.setdefault(target.name.partition(":")[0], []).append(target)

    def share(those: list[bool]) -> str:
        return "yes" if all(those) else f"{sum(those)} of {len(those)}" if any(those) else "no"

    return [
        (
            family,
            share([target.compiles for target in those]),
            share([target.runs for target in those]),
            ", ".join(dict.fromkeys(target.evidence for target in those)),
            ", ".join(target.name.partition(":")[2] for target in those),
        )
        for family, those in members.items()
    ]


def why_not_compile(target: Target) -> str:
    """A sentence saying why nothing can be compiled for ``target`` here; empty if it can."""
    if target.lowering is None:
        return "Nothing is compiled for it."
    try:
        load_object(target.lowering)
    except ModuleNotFoundError as missing:
        return f"The compiler needs {missing.name}: {install(target, 'compile')}."
    except AiccError as error:
        return str(error)
    return ""


def why_not_run(target: Target) -> str:
    """A sentence saying why ``target`` cannot run here; empty if it can."""
    if target.provider is None:
        return "It runs outside aicc, by the tools of the chip's maker."
    try:
        names = [device.name for device in provider_of(target).devices()]
    except AiccError as error:
        return str(error)
    except ModuleNotFoundError as missing:
        return f"It needs {missing.name}: {install(target, target.extra)}."
    here = machine.processor()
    if target.architecture not in ("", here.architecture):
        return f"This machine is {here.architecture}, and it is for {target.architecture}."
    if lacking := sorted(set(target.instruction_sets) - set(here.instruction_sets)):
        return f"This processor lacks {', '.join(lacking)}."
    if any(is_device(target, name) for name in names):
        return ""
    return f"This machine has no device {target.device} ({', '.join(names) or 'none at all'} found)."


def install(target: Target, extra: str) -> str:
    """The pip command that brings what a target needs."""
    extras = [name for name in dict.fromkeys((extra, target.extra)) if name]
    return f"pip install 'aicc[{','.join(extras)}]'" if extras else "pip install --force-reinstall aicc"


def examine() -> DoctorDocument:
    """Look at the machine, the installation and the caches."""
    cpu, memory = machine.processor(), machine.memory()
    devices, packages, cache = list(_devices()), list(_packages()), _cache()
    return DoctorDocument(
        aicc=metadata.version("aicc"),
        python=platform.python_version(),
        python_path=sys.executable,
        system=f"{platform.system()} {platform.release()}",
        processor=ProcessorInfo(
            model=cpu.model,
            architecture=cpu.architecture,
            instruction_sets=list(cpu.instruction_sets),
            cores=cpu.cores,
            usable_cores=cpu.usable_cores,
        ),
        memory_total=memory.total,
        memory_available=memory.available,
        devices=devices,
        packages=packages,
        cache=cache,
        problems=list(_problems(cpu, memory, devices, packages, cache)),
    )


def _devices() -> Iterator[DeviceInfo]:
    families = {target.provider: target for target in all_targets().values() if target.provider is not None}
    for target in families.values():
        family = target.family
        try:
            found = provider_of(target).devices()
        except AiccError as error:
            yield DeviceInfo(family=family, problem=error.message, remedy=error.remedy)
        except ModuleNotFoundError as missing:
            yield DeviceInfo(family=family, problem=f"{missing.name} is not installed.")
        else:
            if not found:
                yield DeviceInfo(family=family, description="No device of it was found.")
            yield from (
                DeviceInfo(family=family, name=d.name, description=d.description, target=_best_target(family, d.name))
                for d in found
            )


def _best_target(family: str, device: str) -> str:
    here = machine.processor()
    targets = (t for t in all_targets().values() if t.family == family and is_device(t, device) and t.runs_on(here))
    return next((target.name for target in targets), "")


def is_device(target: Target, name: str) -> bool:
    """Whether a provider's name is the target's device: a machine with two GPUs calls them GPU.0 and GPU.1."""
    return name == target.device or name.startswith(f"{target.device}.")


def _packages() -> Iterator[PackageInfo]:
    """What the installation declares to need, with what is there."""
    for line in metadata.requires("aicc") or []:
        specifier, _, marker = line.partition(";")
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(.*)", specifier.strip())
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        if match is None or match[1] == "aicc":
            continue
        try:
            installed = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            installed = ""
        yield PackageInfo(
            name=match[1], installed=installed, requirement=match[2].strip(), extra=extra[1] if extra else ""
        )


def satisfies(installed: str, requirement: str) -> bool:
    """Whether a version meets ``>=`` and ``==`` bounds; other operators are taken as met."""
    for bound in requirement.split(","):
        match = re.match(r"\s*(>=|==)\s*([0-9.]+)", bound)
        if match is None:
            continue
        have, want = (
            tuple(int(n) for n in re.findall(r"\d+", re.split(r"[+a-z]", v)[0])) for v in (installed, match[2])
        )
        if have < want if match[1] == ">=" else have[: len(want)] != want:
            return False
    return True


def _cache() -> CacheInfo:
    folder = machine.cache_directory()
    existing = folder
    while not existing.exists():
        existing = existing.parent
    entries = []
    if folder.is_dir():
        entries = [CacheEntry(name=child.name, bytes=_size(child)) for child in sorted(folder.iterdir())]
    return CacheInfo(path=str(folder), disk_free=shutil.disk_usage(existing).free, entries=entries)


def _size(path: Path) -> int:
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)


def _problems(
    cpu: machine.Processor,
    memory: machine.Memory,
    devices: list[DeviceInfo],
    packages: list[PackageInfo],
    cache: CacheInfo,
) -> Iterator[Problem]:
    for package in packages:
        if package.installed and not satisfies(package.installed, package.requirement):
            what = f"{package.name} is {package.installed}, and aicc needs {package.requirement}."
            yield Problem(what, f"pip install '{package.name}{package.requirement}'")
        if not package.installed and not package.extra:
            yield Problem(f"{package.name} is missing.", "pip install --force-reinstall aicc")
    # A family whose extra was not installed is not wanted here; the table of devices says so.
    incomplete = {package.extra for package in packages if not package.installed}
    unwanted = {target.family for target in all_targets().values() if target.extra in incomplete}
    for device in devices:
        if device.problem and device.family not in unwanted:
            yield Problem(f"{device.family}: {device.problem}", device.remedy)
    if not any(device.name for device in devices):
        yield Problem("No target family finds a device here, so nothing can run.", "pip install 'aicc[openvino]'")
    if cpu.architecture == "x86_64" and "avx2" not in cpu.instruction_sets:
        yield Problem("The processor has no AVX2, so models run many times slower.", "Use a machine made after 2013.")
    if memory.available < LOW_MEMORY:
        what = f"Only {memory.available / 1e9:.1f} GB of memory are available."
        yield Problem(what, "Close other programs, or raise the container's limit.")
    if cache.disk_free < LOW_DISK:
        what = f"Only {cache.disk_free / 1e9:.1f} GB are free on the disk of {cache.path}."
        yield Problem(what, "Free some space, or set XDG_CACHE_HOME to another disk.")
