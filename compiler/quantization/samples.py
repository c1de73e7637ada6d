"""Inputs a model is calibrated with: arrays in ``.npz`` files, texts for models that read tokens, or pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from aicc.compiler.disk import scratch
from aicc.compiler.facts import graph_signatures
from aicc.compiler.importers import ImportedModel
from aicc.compiler.quantization.pictures import read_pictures
from aicc.runtime.artifact import TensorSpec
from aicc.runtime.errors import AiccError, ResourceError, UsageError
from aicc.runtime.machine import memory
from aicc.runtime.provider import Array
from aicc.runtime.session import check_inputs, what_it_takes
from aicc.runtime.tokenizer import Tokenizer

Sample = dict[str, Array]

_CHUNK_TOKENS = 128  # of a decoder's text read at once
_FORMS = (
    "Give a .npz file of inputs by name, a text for a model that reads tokens, pictures for one that comes with "
    "preprocessor_config.json, or a folder of such files."
)


def read_samples(path: Path, imported: ImportedModel) -> list[Sample]:
    """The samples in a file or folder.

    Args:
        path: A ``.npz`` file whose arrays have the inputs' names, and an axis in front, or the inputs' own first
            one, that counts samples; a UTF-8 text, of which a decoder reads all and an encoder every line by
            itself; a picture, for models that say how theirs are prepared; or a folder of such files.
        imported: The model; its graph's inputs say what a sample is.

    Returns:
        One dictionary of arrays for each sample, at least one.

    Raises:
        UsageError: Nothing usable is there; the file and what is wrong in it are named.
        ResourceError: The arrays of a file do not fit the memory.
    """
    specs = graph_signatures(imported.graph)["default"].inputs
    samples = []
    for file, sample in _found(sample_files(path), specs, imported):
        try:
            samples.append(check_inputs(specs, sample))
        except AiccError as error:
            raise UsageError(f"{file}: {error.message}", error.remedy) from error
    if not samples:
        raise UsageError(f"{path} has no sample.", _FORMS)
    return samples


def _found(files: list[Path], specs: tuple[TensorSpec, ...], imported: ImportedModel) -> Iterator[tuple[Path, Sample]]:
    """Each sample with the file it is of."""
    reads_text = imported.tokenizer_json is not None and any(spec.name == "input_ids" for spec in specs)
    pictures = []
    for file in files:
        if zipfile.is_zipfile(file):
            yield from ((file, sample) for sample in _read_arrays(file, specs))
        elif reads_text:
            yield from ((file, sample) for sample in _read_text(file, specs, imported))
        else:
            pictures.append(file)
    if pictures:
        yield from read_pictures(pictures, specs, imported)


def sample_files(path: Path) -> list[Path]:
    """The files that :func:`read_samples` would read, in order.

    Raises:
        UsageError: There is none.
    """
    if not path.exists():
        raise UsageError(f"the calibration data {path} does not exist.", _FORMS)
    if not path.is_dir():
        return [path]
    if files := sorted(path.glob("*.npz")):
        return files
    if files := sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")):
        return files
    raise UsageError(f"the folder {path} has no files.", _FORMS)


def _read_arrays(file: Path, specs: tuple[TensorSpec, ...]) -> list[Sample]:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > (available := memory().available):
            raise ResourceError(
                f"the arrays in {file} take {size:,} bytes, and {available:,} are free.", "Give fewer samples."
            )
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except AiccError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever a damaged file makes them trip over
        raise UsageError(f"{file} cannot be read: {error}.", _FORMS) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is none
            raise UsageError(f"{file}: {name!r} is no array.", _FORMS)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{file}: {name!r} has values that are not finite.", "Leave those samples out.")
    takes = what_it_takes(specs)
    known = {spec.name: spec for spec in specs}
    if set(arrays) != set(known):
        wrong = sorted(set(arrays) ^ set(known))[0]
        what = "is no input" if wrong in arrays else "is missing"
        raise UsageError(f"{file}: {wrong!r} {what}.", takes)
    columns = {name: _split(array, known[name]) for name, array in arrays.items()}
    counts = {len(column) for column in columns.values()} - {1}
    if len(counts) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UsageError(f"{file} has another number of samples for each input: {lengths}.", takes)
    return [
        {name: column[index % len(column)] for name, column in columns.items()} for index in range(max(counts or {1}))
    ]


def _split(array: Array, spec: TensorSpec) -> list[Array]:
    """The samples along the first axis; an array that has no such axis is one sample."""
    if array.ndim == len(spec.shape) + 1:
        return list(array)
    if array.ndim != len(spec.shape) or not spec.shape or array.ndim == 0:
        return [array]
    size = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    if size == 0 or len(array) % size:
        return [array]
    return [array[start : start + size] for start in range(0, len(array), size)]


def _read_text(file: Path, specs: tuple[TensorSpec, ...], imported: ImportedModel) -> list[Sample]:
    tokens = next(spec for spec in specs if spec.name == "input_ids")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the text {file} cannot be read: {error}.", _FORMS) from error
    length = tokens.shape[-1] if isinstance(tokens.shape[-1], int) else None
    with scratch("tokenizer") as folder:
        (folder / "tokenizer.json").write_text(imported.tokenizer_json, encoding="utf-8")
        tokenizer = Tokenizer(folder / "tokenizer.json")
    if imported.kind == "decoder":
        ids, size = tokenizer.encode(text), length or _CHUNK_TOKENS
        rows = [ids[start : start + size] for start in range(0, len(ids), size)]
    else:
        rows = [tokenizer.encode(line) for line in text.splitlines() if line.strip()]
        most = length or (imported.embedding.max_tokens if imported.embedding else None)
        for number, row in enumerate(rows, 1):
            if most is not None and len(row) > most:
                raise UsageError(
                    f"{file}: text {number} has {len(row)} tokens, and the model reads {most}.", "Shorten it."
                )
    return [_token_inputs(specs, row, length or len(row)) for row in rows]


def _token_inputs(specs: tuple[TensorSpec, ...], ids: list[int], length: int) -> Sample:
    """One sequence without a past, padded to ``length``; a KV cache has the sizes its input names, else none."""
    padding = length - len(ids)
    known: Mapping[str, list[int]] = {
        "input_ids": ids + [0] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "position_ids": list(range(length)),
        "token_type_ids": [0] * length,
    }
    sample: Sample = {}
    for spec in specs:
        if spec.name in known:
            sample[spec.name] = np.asarray([known[spec.name]], spec.dtype)
        elif len(spec.shape) == 4:  # past keys and values
            sizes = [size if isinstance(size, int) else (0, 1)[axis == 0] for axis, size in enumerate(spec.shape)]
            sample[spec.name] = np.zeros(sizes, spec.dtype)
    return sample
