"""From a model to a C library in a folder: a compile, and the family's own packaging of what it made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aicc.compiler.disk import make_staging, move_into_place, no_space, sweep_leftovers, writing
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.compiler.report import CompileReport
from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError, is_disk_full
from aicc.runtime.target import Target, load_object

_MARK = "aicc_model.h"  # what says that a folder is such a library


def compile_to_library(source: str | Source, target: Target, output: Path, **options: Any) -> CompileReport:
    """Compile a model into a folder with a C header, the library, the weights and the tokenizer.

    Args:
        source: The model.
        target: What to compile for.
        output: The folder to make; a library that is there already is replaced.
        options: As :func:`aicc.compiler.pipeline.compile_model` has them.

    Raises:
        AiccError: Any of its kinds; ``output`` is as it was then.
    """
    if target.library is None:
        raise UsageError(f"{target.family} has no C library.", "Compile with --target cpu, or without --emit.")
    if output.exists() and not (output / _MARK).is_file():
        raise UsageError(f"{output} exists and is no library of aicc.", "Choose another --output.")
    target = target.with_compiler(options.pop("compiler", None))
    write: Callable[[Artifact, Path, Target], list[str]] = load_object(target.library)  # type: ignore[assignment]
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(output)
        staging, lock = make_staging(output)
    try:
        artifact = staging / "model.aicc"
        report = compile_model(source, target, artifact, **options)
        with writing(output):
            report.notes += write(Artifact.open(artifact), staging / "library", target)
            move_into_place(staging / "library", output)
    except OSError as error:
        if is_disk_full(error):
            raise no_space(Path(error.filename or output), None, error) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)
    return report
