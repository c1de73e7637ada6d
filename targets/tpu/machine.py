"""Which TPUs this machine has, asked of the kernel: jax, asked, would take them away from whoever uses them."""

from __future__ import annotations

import os
from pathlib import Path

_PCI = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
_CHIPS = {"0x0062": "TPU v5p", "0x0063": "TPU v5e", "0x006f": "TPU v6e", "0x0076": "TPU7x"}
# Without a TPU, libtpu would ask a server of Google's cloud what machine it is on, wait for minutes, and complain; and
# keep a second process from compiling, as only one can use a TPU.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def tpu_chips() -> list[str]:
    """The names that targets have for the TPUs on this machine's bus."""
    vendors = [path for path in sorted(_PCI.glob("*/vendor")) if path.read_text().strip() == _GOOGLE]
    kinds = [path.with_name("device").read_text().strip() for path in vendors]
    return [_CHIPS[kind] for kind in kinds if kind in _CHIPS]


def settle_jax() -> None:
    """Say in the environment that there is no TPU, if there is none; to be called before jax is imported."""
    if not tpu_chips():
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)
