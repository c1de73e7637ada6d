"""``aicc run`` for models of tensors: ``.npy`` files in, ``.npy`` files out."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aicc.cli.documents import OutputInfo, RunTensorsDocument
from aicc.cli.output import note, note_compatibility, print_json, print_result, shown_path, write_atomically
from aicc.runtime import load
from aicc.runtime.errors import UsageError
from aicc.runtime.provider import Array

if TYPE_CHECKING:
    from aicc.runtime import Session


def run_tensors(
    artifact: Path,
    inputs: tuple[str, ...],
    output_dir: Path | None,
    signature: str,
    as_json: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Run once on arrays from files.

    Args:
        artifact: A model of tensors.
        inputs: ``name=file`` each.
        output_dir: Gets one ``.npy`` file for each output; None writes nothing.
        signature: Entry point.
        as_json: Print the document instead of a line for each output.
        device: What it must have been compiled for.
        threads: Threads to compute with.

    Raises:
        UsageError: An input is not given as asked, or not what the signature says.
    """
    arrays = read_inputs(inputs)
    started = time.perf_counter()
    session: Session = load(artifact, device, threads)  # type: ignore[assignment]
    load_s = time.perf_counter() - started
    note_compatibility(session.compatibility)
    with session:
        started = time.perf_counter()
        outputs = session.run(arrays, signature)
        run_s = time.perf_counter() - started
        device_name, target = session.device, session.target
    files = write_outputs(outputs, output_dir) if output_dir is not None else dict.fromkeys(outputs, "")
    note(f"ran in {run_s:.3f} s on {device_name}; loaded in {load_s:.2f} s")
    rows = [
        OutputInfo(name=name, dtype=array.dtype.name, shape=list(array.shape), file=files[name])
        for name, array in outputs.items()
    ]
    if as_json:
        print_json(RunTensorsDocument(outputs=rows, load_s=load_s, run_s=run_s, device=device_name, target=target))
    else:
        print_result(*(f"{r.name} {r.dtype}{r.shape} {r.file}" for r in rows))


def read_inputs(pairs: tuple[str, ...]) -> dict[str, Array]:
    """The arrays of ``name=file`` pairs, mapped where possible.

    Raises:
        UsageError: A pair is malformed or repeated, or its file is no array.
    """
    arrays: dict[str, Array] = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not (name and separator and file):
            raise UsageError(f"--input {pair!r} is not NAME=FILE.", "For example: --input input_ids=ids.npy")
        if name in arrays:
            raise UsageError(f"--input {name!r} is given twice.")
        arrays[name] = _read_array(Path(file), name)
    return arrays


def _read_array(path: Path, name: str) -> Array:
    remedy = "Write it with numpy.save(file, array)."
    try:
        # Mapping compares the header with the file's size, so a lying header cannot ask for memory.
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError(f"--input {name}: there is no file {path}.", remedy) from error
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(f"--input {name}: {path} cannot be read as an array ({error}).", remedy) from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"--input {name}: {path} holds several arrays.", remedy)
    return array


def write_outputs(outputs: dict[str, Array], folder: Path) -> dict[str, str]:
    """Write every output to a file of its own, as :func:`write_atomically` does.

    Returns:
        The file of each output. Names that cannot be file names are changed to ones that can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name in outputs:
        stem = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "output"
        while folder / f"{stem}.npy" in files.values():
            stem += "_"
        files[name] = folder / f"{stem}.npy"
    write_atomically({files[name]: partial(np.save, arr=array, allow_pickle=False) for name, array in outputs.items()})
    return {name: shown_path(path) for name, path in files.items()}
