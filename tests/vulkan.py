"""A Vulkan driver that needs no card: the system's, or Debian's package that `make vulkan` unpacks under build/."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

_UNPACKED = Path(__file__).parents[1] / "build" / "vulkan"
_SYSTEM = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))


def use_driver(unpacked: Path = _UNPACKED, system: tuple[Path, ...] = _SYSTEM) -> bool:
    """Have this process and those it starts use the unpacked driver, unless the system or the caller has one.

    Must be called before the first graphics device is asked for.

    Returns:
        Whether it is used.
    """
    if "VK_DRIVER_FILES" in os.environ or any(any(folder.glob("*.json")) for folder in system):
        return False
    driver = next(unpacked.glob("usr/lib/*/libvulkan_lvp.so"), None)
    if driver is None:
        return False
    description = unpacked / "driver.json"
    icd = {"file_format_version": "1.0.0", "ICD": {"library_path": str(driver), "api_version": "1.1.0"}}
    description.write_text(json.dumps(icd))
    os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = str(description)  # old loaders know the latter
    paths = [str(driver.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))  # for processes that are started from here
    libraries = {path.resolve() for pattern in ("lib/*/*.so*", "usr/lib/*/*.so*") for path in unpacked.glob(pattern)}
    _load(sorted(path for path in libraries if not path.name.startswith(("libVkLayer", "libvulkan_"))))
    return True


def _load(libraries: list[Path]) -> None:
    """Load what was unpacked into this process, where only the names of libraries matter from then on.

    Each can be loaded once what it needs is there, so those that cannot are tried again.
    """
    while libraries:
        left = []
        for path in libraries:
            try:
                ctypes.CDLL(str(path))
            except OSError:
                left.append(path)
        if len(left) == len(libraries):
            return
        libraries = left
