"""A model as a C library, for programs without Python: what ``aicc compile --emit lib`` writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aicc.runtime.artifact import TOKENIZER_PATH, WEIGHTS_PATH, Artifact
from aicc.runtime.errors import UnsupportedError
from aicc.runtime.target import Target
from aicc.targets.cpu.lowering.tokenizer_file import tokenizer_file
from aicc.targets.cpu.lowering.toolchain import KERNELS, LIBRARY, SOURCE, compile_archive

HEADER, WEIGHTS, TOKENIZER = "aicc_model.h", "model.bin", "tokenizer.bin"


def write_library(artifact: Artifact, folder: Path, target: Target) -> list[str]:
    """Write the header, the library in both forms, the weights and, for decoders, the tokenizer.

    Args:
        artifact: Of this family.
        folder: Made here.
        target: What the artifact, or one of its variants, was compiled for.

    Returns:
        Notes: what the folder lacks, and why.

    Raises:
        UnsupportedError: The C compiler refuses the model.
        ResourceError: No disk to compile on.
    """
    variant = next(v for v in artifact.manifest.variants if v.target == target.name)
    made = artifact.path / variant.directory
    folder.mkdir()
    shutil.copyfile(KERNELS / HEADER, folder / HEADER)
    shutil.copyfile(made / LIBRARY, folder / LIBRARY)
    compile_archive((made / SOURCE).read_text(), target, folder)
    try:
        os.link(artifact.file(WEIGHTS_PATH), folder / WEIGHTS)
    except OSError:  # another file system, or one without links
        shutil.copyfile(artifact.file(WEIGHTS_PATH), folder / WEIGHTS)
    if artifact.manifest.llm is None or not artifact.has(TOKENIZER_PATH):
        return []
    try:
        (folder / TOKENIZER).write_bytes(tokenizer_file(artifact))
    except UnsupportedError as error:
        return [f"no {TOKENIZER}: {error.message}"]
    return []
