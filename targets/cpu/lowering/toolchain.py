"""The C compiler: clang out of the PyPI package ``ziglang``, which makes code for every target from any machine, or the
user's own."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.machine import cache_directory
from aicc.runtime.target import Target

KERNELS = Path(__file__).parents[1] / "kernels"
SOURCE, LIBRARY, ARCHIVE = "model.c", "libmodel.so", "libmodel.a"
ZIGLANG = "ziglang"
_TIMEOUT = 600  # seconds; a model takes a few
_DISK_BYTES = 64 << 20  # with less than that free, a compiler that fails has run out of it

# Contraction is off because kernels say themselves where a multiply-add is fused; the path map and the
# missing build id make the same source give the same bytes wherever it is compiled.
_FLAGS = (
    "-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition",
    "-fvisibility=hidden", "-fPIC", "-g0", "-Wno-unused-function",
)  # fmt: skip
_LINKED = ("-shared", "-Wl,-s", "-Wl,--build-id=none", "-lm", "-lpthread")


@dataclass(frozen=True, slots=True)
class Machine:
    """What compilers call a target.

    Attributes:
        triple: For ziglang's clang.
        cpu: Flags for ziglang's clang.
        march: Flags for any gcc or clang.
        common: Flags for all of them.
    """

    triple: str
    cpu: str
    march: tuple[str, ...]
    common: tuple[str, ...] = ()


# The oldest C library that has what is used: 2012; the first one for RISC-V is of 2018.
_LINUX_X86, _LINUX_ARM, _LINUX_RISCV = "x86_64-linux-gnu.2.17", "aarch64-linux-gnu.2.17", "riscv64-linux-gnu.2.27"
_WIDE, _PORTABLE = ("-mprefer-vector-width=512",), ("-DAICC_PORTABLE",)
_V4 = ("-march=x86-64-v4", "-mavx512vnni")
_AMX = (*_V4, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16")
MACHINES = {
    "amx": Machine(_LINUX_X86, "x86_64_v4+avx512vnni+avx512bf16+amx_tile+amx_int8+amx_bf16", _AMX, _WIDE),
    "avx512-vnni": Machine(_LINUX_X86, "x86_64_v4+avx512vnni", _V4, _WIDE),
    "x86-64-v3": Machine(_LINUX_X86, "x86_64_v3", ("-march=x86-64-v3",)),
    "portable": Machine(_LINUX_X86, "baseline", ("-march=x86-64",), _PORTABLE),
    "aarch64-i8mm": Machine(_LINUX_ARM, "generic+v8_2a+dotprod+i8mm", ("-march=armv8.2-a+dotprod+i8mm",)),
    "aarch64": Machine(_LINUX_ARM, "generic+v8_2a+dotprod", ("-march=armv8.2-a+dotprod",)),
    "aarch64-portable": Machine(_LINUX_ARM, "generic", ("-march=armv8-a",), _PORTABLE),
    "riscv64": Machine(_LINUX_RISCV, "generic_rv64+m+a+f+d+c+v", ("-march=rv64gcv",)),
    "riscv64-portable": Machine(_LINUX_RISCV, "generic_rv64+m+a+f+d+c", ("-march=rv64gc",), _PORTABLE),
}


def compile_library(source: str, target: Target, directory: Path) -> str:
    """Compile ``model.c`` to a shared library.

    Args:
        source: The C text.
        target: Its variant is one of :data:`MACHINES`; its first compiler is taken.
        directory: Where the library goes.

    Returns:
        Its file name.

    Raises:
        MismatchError: There is no compiler.
        UnsupportedError: It does not compile the model, or not in time.
        ResourceError: No disk to compile on.
    """
    with _compiled(source, target, (*_LINKED, "-o", LIBRARY)) as folder:
        Path(directory, LIBRARY).write_bytes(Path(folder, LIBRARY).read_bytes())
    return LIBRARY


def compile_archive(source: str, target: Target, directory: Path) -> str:
    """Compile ``model.c`` to a static library; otherwise as :func:`compile_library`."""
    with _compiled(source, target, ("-c", "-o", "model.o")) as folder:
        archiver = [*_zig(), "ar", "rcsD", ARCHIVE, "model.o"]
        if refused := _run(archiver, folder, cache_directory() / "zig"):
            raise ResourceError(f"{ARCHIVE} cannot be made: {refused}.", "Free some disk.")
        Path(directory, ARCHIVE).write_bytes(Path(folder, ARCHIVE).read_bytes())
    return ARCHIVE


@contextmanager
def _compiled(source: str, target: Target, options: tuple[str, ...]) -> Iterator[str]:
    """A folder with what the compiler made of ``model.c``, until the block ends."""
    compiler, machine = target.compilers[0], MACHINES[target.variant]
    if compiler == ZIGLANG:
        command = [*_zig(), "cc", "-target", machine.triple, f"-mcpu={machine.cpu}"]
        remedy = "This is a defect of aicc: please report it. Until then compile for another target."
    else:
        command = [*_words(compiler), *machine.march]
        remedy = f"--cc must be GCC 12 or clang 15 at least, for {target.architecture}; or leave it out."
    command += [*machine.common, *_FLAGS, f"-I{KERNELS}", SOURCE, *options]
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, SOURCE).write_text(source)
            # The first cache is everybody's, so that the C library is made once: another process may be emptying it
            # or have been killed in it. What fails in a cache of its own as well is the compiler's own word.
            if _run(command, folder, cache_directory() / "zig") and (
                refused := _run(command, folder, Path(folder, "cache"))
            ):
                for place in (Path(folder), cache_directory()):
                    if shutil.disk_usage(place).free < _DISK_BYTES:
                        raise ResourceError(
                            f"the C compiler ended with too little space left in {place}.",
                            "Free some disk, or set XDG_CACHE_HOME and TMPDIR.",
                        )
                raise UnsupportedError(f"the C compiler refuses the model: {refused}.", remedy)
            yield folder
    except OSError as error:
        raise ResourceError(
            f"the C compiler cannot work: {error.strerror or error}.",
            "Free some disk, or set XDG_CACHE_HOME and TMPDIR.",
        ) from error


def producer(target: Target) -> dict[str, str]:
    """The compiler and its version, for the manifest."""
    from importlib import metadata

    compiler = target.compilers[0]
    if compiler == ZIGLANG:
        _zig()
        return {ZIGLANG: metadata.version(ZIGLANG)}
    try:
        command = [*_words(compiler), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MismatchError(f"the C compiler {compiler} does not say its version: {error}.", _OTHER) from error
    return {"cc": said.partition("\n")[0][:200] or compiler}


_OTHER = "Give --cc a gcc or clang that is installed, or leave it out."


def _zig() -> list[str]:
    if importlib.util.find_spec(ZIGLANG) is None:
        raise MismatchError(
            f"the cpu family needs a C compiler, the package {ZIGLANG}.", "Install it: pip install 'aicc[compile]'."
        )
    return [sys.executable, "-m", ZIGLANG]


def _words(compiler: str) -> list[str]:
    """A command for a compiler as words."""
    try:
        words = shlex.split(compiler)
    except ValueError as error:
        raise UsageError(f"the C compiler {compiler!r} is no command: {error}.", _OTHER) from error
    if not words or shutil.which(words[0]) is None:
        raise MismatchError(f"there is no C compiler {compiler!r} on this machine.", _OTHER)
    return words


def _run(command: list[str], folder: str, cache: Path) -> str:
    """Run the compiler; what it says against the model, empty if nothing."""
    cache.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache / "local")}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(
            f"the C compiler did not finish the model in {_TIMEOUT} seconds.", "Compile for another target."
        ) from error
    if not done.returncode:
        return ""
    said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return "; ".join(line.strip() for line in said[:3]) or f"it ended with {done.returncode}"
