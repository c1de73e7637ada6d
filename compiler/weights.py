"""The artifact's weights file, written as a stream: no more than one tensor is ever in memory."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import onnx_ir as ir

from aicc.compiler.disk import writing
from aicc.runtime.artifact import PAGE, TENSOR_ALIGNMENT

_HUGE_PAGE = 2 << 20


class WeightFile:
    """A :class:`aicc.compiler.lowering.WeightStore` on disk.

    Equal content is stored once, whoever adds it. Constants start at multiples of 64 bytes and the
    file ends at a multiple of 4096; the gaps are zeros. The file is made by the first ``add`` and complete after
    :meth:`finish`: it is written 2 MiB at a time, which Linux then keeps as one page of memory where the file system
    lets it, and weights in large pages are read faster (docs/performance.md).

    Args:
        path: Where it is written.
        name: What to call it in messages.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._path = path
        self._name = name
        self._file: io.FileIO | None = None
        self._offsets: dict[bytes, int] = {}
        self._digest = hashlib.sha256()
        self._pending = bytearray()  # not written yet, less than a huge page
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of everything added so far, in hexadecimal."""
        return self._digest.hexdigest()

    def add(self, data: bytes | memoryview) -> int:
        """Append a constant, or find the same bytes already there.

        Args:
            data: Contiguous bytes; a multi-byte type must be little-endian.

        Returns:
            Its offset in the file, aligned to 64 bytes.

        Raises:
            ResourceError: There is no space for it.
        """
        content = memoryview(data)
        content = content.cast("B") if content.nbytes else memoryview(b"")
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            padding = -self.size % TENSOR_ALIGNMENT
            with writing(self._name, padding + len(content)):
                self._append(memoryview(bytes(padding)))
                offset = self.size
                self._append(content)
            self._offsets[key] = offset
        return self._offsets[key]

    def finish(self) -> None:
        """Pad to a whole page and write what is left."""
        if self._file is None:
            return
        with writing(self._name, len(self._pending) + PAGE):
            self._append(memoryview(bytes(-self.size % PAGE)))
            self._write()

    def close(self) -> None:
        """Give back the file descriptor."""
        if self._file is not None:
            self._file.close()

    def _append(self, data: memoryview) -> None:
        if self._file is None:
            self._path.parent.mkdir(exist_ok=True)
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the store
        self._digest.update(data)
        self.size += len(data)
        while data:
            room = _HUGE_PAGE - len(self._pending)
            self._pending += data[:room]
            data = data[room:]
            if len(self._pending) == _HUGE_PAGE:
                self._write()

    def _write(self) -> None:
        assert self._file is not None
        left = memoryview(self._pending)
        while left:  # a single write may take less than it is given
            left = left[self._file.write(left) :]
        self._pending = bytearray()


def tensor_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes ONNX stores for a tensor: little-endian, 4-bit values packed low nibble first.

    A lazy tensor is evaluated and a mapped one mapped for as long as the result lives: the tensor
    itself holds on to nothing. No bytes are copied unless they have to be packed.
    """
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if isinstance(tensor, ir.PackedTensor):
        array = tensor.numpy_packed()
    elif tensor.dtype.bitwidth < 8:
        packed = io.BytesIO()
        tensor.tofile(packed)
        return packed.getbuffer()
    elif isinstance(tensor, ir.ExternalTensor):
        # A second tensor over the same file, because the first would keep its mapping.
        array = ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=tensor.shape, name=tensor.name or "", base_dir=tensor.base_dir,
        ).numpy()  # fmt: skip
    else:
        array = tensor.numpy()
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
