"""Compiling the kernels for tests and benchmarks: one shared library for each instruction set."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aicc.runtime.machine import cache_directory, processor
from aicc.runtime.target import find_target
from aicc.targets.cpu.lowering.toolchain import MACHINES

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "targets" / "cpu" / "kernels"
BUILD = HERE.parents[1] / "build" / "native"


def zig_environment() -> dict[str, str]:
    """Environment for the compiler: the C libraries that it makes for itself are the same as for models."""
    zig = cache_directory() / "zig"
    return {"ZIG_GLOBAL_CACHE_DIR": str(zig), "ZIG_LOCAL_CACHE_DIR": str(zig / "local")} | os.environ


def emulator(name: str) -> str | None:
    """Where an emulator is: the system's, or what the Makefile has fetched."""
    return shutil.which(name) or shutil.which(f"{name}-static", path=HERE.parents[1] / "build" / "qemu" / "usr" / "bin")


@dataclass(frozen=True)
class Isa:
    """How the tests get at an instruction set.

    Attributes:
        variant: Of the cpu family.
        name: What a library says it is.
        emulator: Command that runs programs for it; empty if this processor does.
        options: For the compiler, besides the variant's.
    """

    variant: str
    name: str
    emulator: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def missing(self) -> str:
        """What keeps code for it from running here; empty if nothing does."""
        if self.emulator:
            if sanitized():
                return "the cross compiler has no sanitizer"
            return "" if emulator(self.emulator[0]) else f"there is no {self.emulator[0]}: install Debian's qemu-user"
        target = find_target(f"cpu:{self.variant}")
        missing = sorted(set(target.instruction_sets) - set(processor().instruction_sets))
        return f"this processor lacks {', '.join(missing)}" if missing else ""


TILES = ("-include", str(HERE / "tiles.h"))
QEMU_RISCV = ("qemu-riscv64", "-cpu")
ISAS = {
    "portable": Isa("portable", "portable"),
    "avx2": Isa("x86-64-v3", "avx2"),
    "avx512-vnni": Isa("avx512-vnni", "avx512-vnni"),
    "amx": Isa("amx", "amx"),
    "emulated tiles": Isa("avx512-vnni", "amx", options=TILES),
    "aarch64": Isa("aarch64", "neon-dotprod", ("qemu-aarch64",)),
    "aarch64-i8mm": Isa("aarch64-i8mm", "neon-i8mm", ("qemu-aarch64",)),
    "aarch64-portable": Isa("aarch64-portable", "portable", ("qemu-aarch64",)),
    "riscv64": Isa("riscv64", "rvv", (*QEMU_RISCV, "rv64,v=true,vlen=128")),
    "riscv64 of 512 bits": Isa("riscv64", "rvv", (*QEMU_RISCV, "rv64,v=true,vlen=512")),
    "riscv64-portable": Isa("riscv64-portable", "portable", ("qemu-riscv64",)),
}
HERE_ONLY = [name for name, isa in ISAS.items() if not isa.emulator]
COMMON = [
    *("-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{KERNELS}"),
]
LIBRARY, PROGRAM = ("-fPIC", "-shared"), ("-static",)
RELEASE = ["-g0", "-Wl,-s"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def sanitized() -> bool:
    """Whether libraries are built with AddressSanitizer and UndefinedBehaviorSanitizer (`make test-native`)."""
    return os.environ.get("AICC_SANITIZE") == "1"


def build(source: Path, isa: str, defines: tuple[str, ...] = ()) -> Path:
    """The shared library of a C file, or a program to be emulated; made again only if what it is made of has changed.

    Sanitized libraries are compiled by the system's gcc: the `ziglang` wheel has no sanitizer runtime.
    """
    how = ISAS[isa]
    machine = MACHINES[how.variant]
    flags = [*COMMON, *how.options, *(f"-D{define}" for define in defines), *([] if how.emulator else LIBRARY)]
    if sanitized():
        command = ["gcc", *SANITIZE, *machine.march, *machine.common, *flags]
    else:
        # An emulated program has no system of its processor around it, so it brings its C library.
        triple = machine.triple.partition("-")[0] + "-linux-musl" if how.emulator else machine.triple
        optimise = "-O1" if how.emulator or how.options else "-O3"  # emulation is slow anyway, and compiling is quicker
        command = [sys.executable, "-m", "ziglang", "cc", optimise, *RELEASE, "-target", triple, f"-mcpu={machine.cpu}"]
        command += [*machine.common, *flags]
    inputs = [source, *sorted(HERE.glob("*.[ch]")), *sorted(KERNELS.glob("*.h"))]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), *(path.read_bytes() for path in inputs)]))
    library = BUILD / f"{source.stem}-{how.variant}-{key.hexdigest()[:16]}"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        last = [*command, str(source)]
        if how.emulator:  # the C library is made anew for each -mcpu, so that linking names none
            subprocess.run([*last, "-c", "-o", f"{partial}.o"], check=True, env=zig_environment())
            last = [sys.executable, "-m", "ziglang", "cc", "-target", triple, *PROGRAM, f"{partial}.o"]
        subprocess.run([*last, "-o", str(partial), "-lm", "-lpthread"], check=True, env=zig_environment())
        Path(f"{partial}.o").unlink(missing_ok=True)
        partial.rename(library)
    return library
