"""Pictures a vision model is calibrated with, prepared as its own ``preprocessor_config.json`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aicc.compiler.importers import ImportedModel
from aicc.compiler.importers.files import contained_file, read_json
from aicc.compiler.quiet import quiet
from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.machine import memory
from aicc.runtime.provider import Array
from aicc.runtime.session import what_it_takes

CONFIG = "preprocessor_config.json"  # beside the model, as published with models of the hub


def read_pictures(
    files: Sequence[Path], specs: tuple[TensorSpec, ...], imported: ImportedModel
) -> Iterator[tuple[Path, dict[str, Array]]]:
    """Each picture with the model's input made of it.

    Args:
        files: Pictures in any format that Pillow reads, by content.
        specs: The model's inputs.
        imported: The model; ``preprocessor_config.json`` lies beside its file.

    Yields:
        The file and a sample: float32 ``[1, channels, height, width]`` by the name of the input.

    Raises:
        UsageError: The model takes something else than one picture, or does not say how it is prepared, or a file is
            no picture.
        MismatchError: Pillow is not installed.
        UnsupportedError: The model's way of preparing pictures is not known.
        ResourceError: They do not fit the memory.
    """
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].dtype != "float32":
        raise UsageError(
            f"{files[0]} is no .npz file, and the model reads neither text nor one picture.", what_it_takes(specs)
        )
    folder = imported.weight_files[0].parent
    if not (folder / CONFIG).exists():
        raise UsageError(
            f"{files[0]} is no .npz file, and no {CONFIG} beside the model says how its pictures are prepared.",
            f"Prepare them as the model's authors say and save the arrays in a .npz file. {what_it_takes(specs)}",
        )
    image, prepare = _pillow(), _preparation(contained_file(folder, CONFIG, str(folder)))
    total, available = 0, memory().available
    for file in files:
        try:
            with image.open(file) as opened:
                picture = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:  # of damaged files
            raise UsageError(f"{file} is no picture that Pillow can read.", "Leave it out.") from error
        array = prepare(picture)
        total += array.nbytes
        if total > available:
            raise ResourceError(f"the pictures up to {file} take {total:,} bytes of memory.", "Give fewer.")
        yield file, {specs[0].name: array}


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MismatchError("reading pictures needs Pillow.", "pip install 'aicc[images]'") from error
    return Image


def _preparation(config: Path) -> Callable[[Any], Array]:
    """What the model's authors do to a picture, by transformers' class of that name that works on arrays."""
    import transformers

    settings = read_json(config)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "none")
    name = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    processor = getattr(transformers, f"{name}Pil", None) if name.endswith("ImageProcessor") else None
    if processor is None:
        raise UnsupportedError(
            f"{config} names the processor {kind!r}, which transformers {transformers.__version__} does not have.",
            "Prepare the pictures with the model's own code and save the arrays in a .npz file.",
        )

    def prepare(picture: Any) -> Array:
        try:
            with quiet():
                values = processor(**settings)([picture], return_tensors="np")["pixel_values"]
            return np.ascontiguousarray(values, np.float32)
        except Exception as error:  # it trips over settings wherever it first uses them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"{config} does not say how pictures are prepared: {reason[:200]}.", "Download it again."
            ) from error

    return prepare
