"""Compiling the kernels for tests and benchmarks: one shared library for each instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from aicc.targets.cpu.lowering.toolchain import MACHINES

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "targets" / "cpu" / "kernels"
BUILD = HERE.parents[1] / "build" / "native"

ISA_FLAGS = {
    "portable": MACHINES["portable"].flags,
    "avx2": MACHINES["x86-64-v3"].flags,
    "avx512-vnni": MACHINES["avx512-vnni"].flags,
}
# What /proc/cpuinfo must list for a library to run here.
ISA_NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512-vnni": {"avx512bw", "avx512vl", "avx512_vnni"},
}
COMMON = [
    *("-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{KERNELS}"),
]
RELEASE = ["-O3", "-g0", "-Wl,-s", "-target", "x86_64-linux-gnu.2.17"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
GCC_ISA = {"portable": ["-DAICC_PORTABLE"], "avx2": ["-march=haswell"], "avx512-vnni": ["-march=cascadelake"]}


def missing_features(isa: str) -> list[str]:
    """What this machine lacks to run code for an instruction set."""
    text = Path("/proc/cpuinfo").read_text()
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return sorted(ISA_NEEDS[isa] - set(flags))


def sanitized() -> bool:
    """Whether libraries are built with AddressSanitizer and UndefinedBehaviorSanitizer (`make test-native`)."""
    return os.environ.get("AICC_SANITIZE") == "1"


def build(source: Path, isa: str, defines: tuple[str, ...] = ()) -> Path:
    """The shared library of a C file, compiled now unless nothing it is made of has changed.

    Sanitized libraries are compiled by the system's gcc: the `ziglang` wheel has no sanitizer runtime.
    """
    flags = [*COMMON, *(f"-D{define}" for define in defines)]
    if sanitized():
        command = ["gcc", *SANITIZE, *GCC_ISA[isa], *flags]
    else:
        command = [sys.executable, "-m", "ziglang", "cc", *RELEASE, *ISA_FLAGS[isa], *flags]
    inputs = [source, *sorted(KERNELS.glob("*.h"))]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), *(path.read_bytes() for path in inputs)]))
    library = BUILD / f"{source.stem}-{isa}-{key.hexdigest()[:16]}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        environment = {
            "ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(BUILD / "zig"),
        } | os.environ
        subprocess.run([*command, str(source), "-o", str(partial), "-lm", "-lpthread"], check=True, env=environment)
        partial.rename(library)
    return library
