"""Runs one operator case the way a user would: compile, load, run; and says how it went."""

from __future__ import annotations

import tempfile
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import onnx
from op_case import Case
from tolerances import assert_within

from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.runtime import load
from aicc.runtime.errors import AiccError, MismatchError, UnsupportedError
from aicc.runtime.provider import provider_of
from aicc.runtime.target import Target, all_targets, find_target

Status = Literal["ok", "refused", "differs", "fails"]


@dataclass(frozen=True)
class Outcome:
    """How a case went on a target.

    Attributes:
        status: ``ok``; ``refused`` when compiling, with the node named; ``differs`` in numbers, types
            or shapes; ``fails`` to load or run.
        detail: What was said; when ok, what the operator became if simplifying replaced it.
    """

    status: Status
    detail: str = ""


_SLOW = ("hexagon",)  # its compiler and emulator take 0.9 s for a single operator: five minutes for all


@cache
def targets_here() -> tuple[Target, ...]:
    """Targets the tests are promised to run on, where this machine has their device.

    Variants for other instruction sets share their family's lowering, so its default stands for them.
    """
    promised = [t for t in all_targets().values() if t.lowering is not None and t.evidence in ("runs", "emulated")]
    promised = [t for t in promised if t.family not in _SLOW]
    chosen = [t for t in promised if not t.architecture or t is find_target(t.family)]
    return tuple(target for target in chosen if _has_device(target))


def _has_device(target: Target) -> bool:
    try:
        return any(device.name.split(".")[0] == target.device for device in provider_of(target).devices())
    except MismatchError:
        return False


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the files."""
    import op_cases_arithmetic
    import op_cases_graphs
    import op_cases_neural
    import op_cases_shapes

    modules = (op_cases_arithmetic, op_cases_shapes, op_cases_neural, op_cases_graphs)
    return tuple(case for module in modules for case in module.CASES)


_MEMORY = Path("/dev/shm")  # artifacts are synced to disk when they are written; thousands of small files need not be
_OUTCOMES: dict[tuple[str, str], Outcome] = {}


def outcome(case: Case, target: Target) -> Outcome:
    """How a case goes on a target; each is run once in a process."""
    key = (case.name, target.name)
    if key not in _OUTCOMES:
        with tempfile.TemporaryDirectory(prefix="aicc-case-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            _OUTCOMES[key] = _run(case, target, Path(folder))
    return _OUTCOMES[key]


def _run(case: Case, target: Target, folder: Path) -> Outcome:
    fixed = case if target.shapes == "dynamic" else replace(case, dynamic=False)
    onnx.save(fixed.model, folder / "case.onnx")
    artifact = folder / "case.aicc"
    try:
        report = compile_model(Source(folder / "case.onnx", "onnx", case.name), target, artifact)
    except UnsupportedError as error:
        return Outcome("refused", error.message)
    try:
        with load(artifact) as session:
            found = session.run(case.inputs)
    except AiccError as error:
        return Outcome("fails", error.message)
    for name, expected in case.expected.items():
        try:
            assert_within(case.tolerance, found[name], expected)
        except AssertionError as error:
            return Outcome("differs", f"{name}: {error}")
    reached = [entry.op for entry in report.coverage]
    return Outcome("ok", "" if case.op in reached else f"as {', '.join(reached) or 'a constant'}")


@cache
def known(target: str) -> dict[str, dict[str, str]]:
    """What is known not to work on a target: case name → ``status`` and ``reason``.

    The entry of a family (``cpu``) holds for its variants, and its case ``*`` for all cases but those listed as ``ok``.
    """
    table = tomllib.loads(Path(__file__).with_name("unsupported.toml").read_text())
    listed = table.get(target) or table.get(target.split(":")[0], {})
    if "*" not in listed:
        return listed
    return {case.name: listed["*"] for case in all_cases() if case.name not in listed}
