"""Arm's compiler for Ethos-U, in a process of its own."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aicc.compiler.disk import scratch
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.ethos_u.layout import COMMANDS_FILE, INSTALL, LAYERS_FILE, PROGRAM_FILE, SUMMARY_FILE

_SECONDS = 1800
# Generation → the system and the use of its memories that Vela is told of: those it takes when it is told nothing.
_SYSTEMS = {
    "u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "u65": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram"),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What Vela says of the compiled program: modelled by it, measured by nobody.

    Attributes:
        system: The system it had in mind, by the name in its configuration file.
        memory_mode: How that system's memories are used.
        cycles: Of one inference.
        clock: Hz.
        sram_bytes: The most that is needed at a time.
        on_host: Operators that are left to the host's processor, by name in the program.
    """

    system: str
    memory_mode: str
    cycles: int
    clock: float
    sram_bytes: int
    on_host: tuple[str, ...]

    @property
    def note(self) -> str:
        """A line for the report."""
        return (
            f"modelled by Vela {version()} for {self.system}, {self.memory_mode}: {self.cycles:,} cycles an inference "
            f"({1e3 * self.cycles / self.clock:.2f} ms at {self.clock / 1e6:.0f} MHz), {self.sram_bytes:,} bytes of "
            "SRAM"
        )


def version() -> str:
    """Of the installed Vela.

    Raises:
        MismatchError: There is none.
    """
    try:
        return metadata.version("ethos-u-vela")
    except metadata.PackageNotFoundError as error:
        raise MismatchError("compiling for Ethos-U needs ethos-u-vela.", INSTALL) from error


def compile_program(directory: Path, target: Target) -> Estimate:
    """Compile the program that lies in a variant's folder, and put the results beside it.

    Raises:
        UnsupportedError: Vela does not take the program, or leaves some of it to the host.
        ResourceError: The program needs more memory than the system has, or Vela more time than it gets.
        MismatchError: Vela is not installed.
    """
    vela = f"Vela {version()}"
    system, memory_mode = _SYSTEMS[target.variant.split("-")[0]]
    with scratch("vela") as made:
        command = [sys.executable, "-P", "-m", "ethosu.vela", str(directory / PROGRAM_FILE), "--output-dir", str(made)]
        command += ["--accelerator-config", f"ethos-{target.variant}"]
        command += ["--config", "Arm/vela.ini", "--system-config", system, "--memory-mode", memory_mode]
        command += ["--verbose-performance"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            what = f"{vela} did not finish in {_SECONDS // 60} minutes and was stopped."
            raise ResourceError(what, "Export the model for smaller inputs, or use a faster machine.") from error
        commands, summary = made / "model_vela.tflite", made / f"model_summary_{system}.csv"
        layers = made / "model_per-layer.csv"
        if done.returncode or not all(path.exists() for path in (commands, summary, layers)):
            raise UnsupportedError(
                f"{vela} does not compile the program for {target.name}: {_reason(done.stdout + done.stderr)}.",
                "Look into the graph with --dump-graph, or compile for another variant.",
            )
        for source, name in ((commands, COMMANDS_FILE), (summary, SUMMARY_FILE), (layers, LAYERS_FILE)):
            (directory / name).write_bytes(source.read_bytes())  # a full disk is named by its own path
    return _read(directory, target, system, memory_mode)


def _reason(output: str) -> str:
    lines = [" ".join(line.split()) for line in output.splitlines() if "rror" in line]
    return (lines or ["it gives no reason"])[-1][:300]


def _read(directory: Path, target: Target, system: str, memory_mode: str) -> Estimate:
    with (directory / SUMMARY_FILE).open(newline="") as file:
        facts = next(csv.DictReader(file))
    with (directory / LAYERS_FILE).open(newline="") as file:
        on_host = tuple(row["Name"] for row in csv.DictReader(file) if row["Target"] != "NPU")
    sram, limit = round(1024 * float(facts["sram_memory_used"])), round(float(facts["arena_cache_size"]))
    if sram > limit:
        raise ResourceError(
            f"the program needs {sram:,} bytes of SRAM at a time, and {system} with {memory_mode} has {limit:,}.",
            "Export the model for smaller inputs, or compile for another variant.",
        )
    return Estimate(system, memory_mode, round(float(facts["cycles_total"])), float(facts["core_clock"]), sram, on_host)
