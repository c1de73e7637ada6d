"""Writing where space can run out and processes can be killed.

A directory is made beside its destination under a hidden name, filled, and renamed into place. The
process that fills it holds a lock on it, which the system gives back however the process ends; a
leftover nobody holds is swept away by the next one that wants the same destination.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aicc.runtime.errors import ResourceError, UsageError, is_disk_full

_RENAME_EXCHANGE = 2  # <linux/fs.h>
_AT_FDCWD = -100  # <fcntl.h>
_staging: set[Path] = set()  # what this process is filling


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the system refuses while ``path`` is written into an error a person can act on.

    Args:
        path: What is being written, as the user knows it.
        needed: Bytes that are being written, if known.

    Raises:
        ResourceError: The disk, quota or file size limit is exhausted.
        UsageError: The path cannot be written at all.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise no_space(path, needed, error) from error
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another output path.") from error


def no_space(path: Path, needed: int | None, error: OSError | None = None) -> ResourceError:
    """The error for a disk that cannot take ``needed`` bytes more for ``path``."""
    reason = error.strerror if error is not None else "there is not enough space on the disk"
    more = f"{needed:,} bytes more are needed, and " if needed is not None else ""
    return ResourceError(
        f"{path} cannot be written: {reason}; {more}{free_bytes(path):,} bytes are free.",
        "Free some disk space, or choose an output on another disk.",
    )


def free_bytes(path: Path) -> int:
    """Bytes a file at ``path`` could still take, whether it exists or not."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def make_staging(destination: Path, mode: int = 0o777) -> tuple[Path, int]:
    """Make an empty, locked directory beside ``destination``.

    Args:
        destination: Where it goes.
        mode: Who may use it, less what the process's mask takes away.

    Returns:
        Its path, and the descriptor that holds the lock until it is closed.
    """
    while True:
        path = _hidden_sibling(destination)
        os.mkdir(path, mode)
        with suppress(FileNotFoundError):  # swept by another process before it could be locked
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks: its leftovers are left alone
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                _staging.add(path)
                return path, descriptor
            os.close(descriptor)


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A folder for files of a moment, where the system has such; it is removed afterwards.

    What a process left that was killed is swept away by the next that works on the same.

    Args:
        kind: What the files are for, a word.

    Raises:
        ResourceError: There is no place for it.
    """
    try:
        place = Path(tempfile.gettempdir(), f"aicc-{kind}")
        sweep_leftovers(place)
        path, lock = make_staging(place, 0o700)
    except OSError as error:
        raise ResourceError(
            f"there is no place for temporary files: {error}.", "Free some space or point TMPDIR elsewhere."
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _staging.discard(path)
        os.close(lock)


def remove_staging() -> None:
    """Remove every directory :func:`make_staging` made here, for a process that ends without its ``finally`` blocks."""
    for path in tuple(_staging):
        shutil.rmtree(path, ignore_errors=True)


def sweep_leftovers(destination: Path) -> None:
    """Remove staging directories for ``destination`` whose process is gone."""
    name = re.compile(re.escape(f".{destination.name}.tmp-") + "[0-9a-f]{8}")
    for path in list(destination.parent.iterdir()):
        if not name.fullmatch(path.name):
            continue
        with suppress(OSError):  # in use, gone by now, or nothing that can be locked
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not renamed meanwhile
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def move_into_place(staging: Path, destination: Path) -> None:
    """Rename a directory to its destination; what was there before ends up at ``staging``.

    Readers see the old directory or the new one. Where the system cannot exchange two names at
    once (any but Linux), there is an instant with neither.
    """
    if not destination.exists():
        os.rename(staging, destination)
    elif not _exchange(staging, destination):
        aside = _hidden_sibling(destination)
        os.rename(destination, aside)
        try:
            os.rename(staging, destination)
        except BaseException:
            os.rename(aside, destination)
            raise
        os.rename(aside, staging)
    sync(destination.parent)


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden_sibling(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.tmp-{secrets.token_hex(4)}"


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where that does not exist."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0
