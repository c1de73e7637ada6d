"""The GPU's driver through ctypes: libcuda or libamdhip64, which have the same functions under other names."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import cache

from aicc.runtime.errors import AiccError, MismatchError, ResourceError

# Names in libcuda; those with a suffix are the second version of a function. HIP's are `hip…` without it.
_CUDA = {
    "Init": "cuInit", "DeviceGetCount": "cuDeviceGetCount", "DeviceGet": "cuDeviceGet",
    "DeviceGetName": "cuDeviceGetName", "DriverGetVersion": "cuDriverGetVersion", "GetErrorString": "cuGetErrorString",
    "StreamCreate": "cuStreamCreate", "StreamSynchronize": "cuStreamSynchronize", "StreamDestroy": "cuStreamDestroy_v2",
    "Malloc": "cuMemAlloc_v2", "Free": "cuMemFree_v2", "MallocHost": "cuMemAllocHost_v2", "FreeHost": "cuMemFreeHost",
    "CopyIn": "cuMemcpyHtoDAsync_v2", "CopyOut": "cuMemcpyDtoHAsync_v2", "Clear": "cuMemsetD8Async",
    "ModuleLoad": "cuModuleLoadData", "ModuleUnload": "cuModuleUnload", "ModuleFunction": "cuModuleGetFunction",
    "Launch": "cuLaunchKernel", "Begin": "cuStreamBeginCapture_v2", "End": "cuStreamEndCapture",
    "Instantiate": "cuGraphInstantiateWithFlags", "GraphLaunch": "cuGraphLaunch", "GraphDestroy": "cuGraphDestroy",
    "GraphExecDestroy": "cuGraphExecDestroy",
}  # fmt: skip
_HIP = {
    "Init": "hipInit", "DeviceGetCount": "hipGetDeviceCount", "DeviceGet": "hipDeviceGet",
    "DeviceGetName": "hipDeviceGetName", "DriverGetVersion": "hipDriverGetVersion",
    "GetErrorString": "hipDrvGetErrorString",
    "StreamCreate": "hipStreamCreateWithFlags", "StreamSynchronize": "hipStreamSynchronize",
    "StreamDestroy": "hipStreamDestroy", "Malloc": "hipMalloc", "Free": "hipFree", "MallocHost": "hipHostMalloc",
    "FreeHost": "hipHostFree", "CopyIn": "hipMemcpyHtoDAsync", "CopyOut": "hipMemcpyDtoHAsync",
    "Clear": "hipMemsetD8Async", "ModuleLoad": "hipModuleLoadData", "ModuleUnload": "hipModuleUnload",
    "ModuleFunction": "hipModuleGetFunction", "Launch": "hipModuleLaunchKernel", "Begin": "hipStreamBeginCapture",
    "End": "hipStreamEndCapture", "Instantiate": "hipGraphInstantiateWithFlags", "GraphLaunch": "hipGraphLaunch",
    "GraphDestroy": "hipGraphDestroy", "GraphExecDestroy": "hipGraphExecDestroy",
}  # fmt: skip
_LIBRARIES = {"cuda": ("libcuda.so.1", _CUDA), "hip": ("libamdhip64.so", _HIP)}
# The same numbers in CUresult and hipError_t.
_NO_MEMORY = 2
_OLD_DRIVER = {"cuda": (35, 222, 803), "hip": (35, 98)}  # and PTX or a binary that it does not know
_WRONG_BINARY = (200, 209, 218)  # invalid image, no binary for the GPU, invalid code
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_SHARED_OPTIN = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_STATIC_SHARED = 48 << 10  # bytes of shared memory that a kernel of CUDA may have without asking
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_GCN_NAME = 1160  # offset of gcnArchName in hipDeviceProp_t of ROCm 6 and 7 (hipDeviceProp_tR0600)


class Driver:
    """A driver and its first GPU.

    Args:
        kind: ``cuda`` or ``hip``.

    Attributes:
        name: What the GPU calls itself.
        architecture: As targets name it: ``sm90``, ``gfx942``.

    Raises:
        MismatchError: There is no driver, no GPU, or the driver is too old to say.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        library, self._names = _LIBRARIES[kind]
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise MismatchError(
                f"there is no {library} on this machine.", "Install the GPU vendor's driver."
            ) from error
        self.name = "the GPU"
        self.call("Init", c_uint(0))
        count, device = c_int(), c_int()
        self.call("DeviceGetCount", byref(count))
        if not count.value:
            raise MismatchError(f"{library} finds no GPU.", "See whether the vendor's tools (nvidia-smi, rocminfo) do.")
        self.call("DeviceGet", byref(device), c_int(0))
        name = ctypes.create_string_buffer(256)
        self.call("DeviceGetName", name, c_int(256), device)
        self.name = name.value.decode(errors="replace")
        self._device = device
        self.architecture = self._architecture()
        self._context = c_void_p()

    def function(self, name: str) -> ctypes._NamedFuncPointer:
        """A function by its own name.

        Raises:
            MismatchError: The driver does not have it yet.
        """
        try:
            return getattr(self._library, name)  # type: ignore[no-any-return]
        except AttributeError as error:
            raise MismatchError(f"the driver of {self.name} lacks {name}: it is too old.", _UPDATE) from error

    def call(self, name: str, *arguments: object) -> None:
        """Call a function by its common name.

        Raises:
            AiccError: It fails; which kind says what a user can do.
        """
        if status := self.function(self._names[name])(*arguments):
            raise self._error(name, status)

    def _error(self, name: str, status: int) -> AiccError:
        text = c_char_p()
        self.function(self._names["GetErrorString"])(c_int(status), byref(text))
        reason = (
            f"{self._names[name]}: {(text.value or b'an error without a name').decode(errors='replace')} ({status})"
        )
        if status == _NO_MEMORY:
            return ResourceError(
                f"{self.name} has no memory left.", "Give fewer --kv-tokens, or compile to fewer bits."
            )
        if status in _OLD_DRIVER[self.kind]:
            return MismatchError(f"the driver of {self.name} is too old ({reason}).", _UPDATE)
        if status in _WRONG_BINARY:
            return MismatchError(
                f"{self.name} does not take what was compiled ({reason}).",
                "Compile for its own target (`aicc targets`).",
            )
        return ResourceError(f"{self.name} failed ({reason}).", "Load the model again; the system's log may say more.")

    def _architecture(self) -> str:
        if self.kind == "hip":
            properties = ctypes.create_string_buffer(4096)
            if self.function("hipGetDevicePropertiesR0600")(properties, c_int(0)):
                raise MismatchError(f"{self.name} does not say what it is.", _UPDATE)
            name = properties.raw[_GCN_NAME : _GCN_NAME + 256].split(b"\0")[0]
            return name.decode(errors="replace").partition(":")[0]
        major, minor = c_int(), c_int()
        attribute = self.function("cuDeviceGetAttribute")
        attribute(byref(major), c_int(_MAJOR), self._device)
        attribute(byref(minor), c_int(_MINOR), self._device)
        return f"sm{major.value}{minor.value}"

    def activate(self) -> None:
        """Make the GPU's context this thread's; CUDA has one for each thread, HIP for the process.

        Raises:
            AiccError: The driver refuses.
        """
        if self.kind == "hip":
            return
        if not self._context:
            status = self.function("cuDevicePrimaryCtxRetain")(byref(self._context), self._device)
            if status:
                raise self._error("Init", status)
        if status := self.function("cuCtxSetCurrent")(self._context):
            raise self._error("Init", status)

    def release(self) -> None:
        """Give the context back."""
        if self._context:
            self.function("cuDevicePrimaryCtxRelease_v2")(self._device)
            self._context = c_void_p()

    def reset(self) -> None:
        """Forget a context that failed, so that the next can be better."""
        if self.kind == "cuda" and self._context:
            self.function("cuDevicePrimaryCtxReset_v2")(self._device)
            self.release()
        elif self.kind == "hip":
            self.function("hipDeviceReset")()

    def allocate(self, size: int) -> int:
        """Memory of the GPU."""
        address = c_void_p()
        self.call("Malloc", byref(address), c_size_t(size))
        return address.value or 0

    def allocate_host(self, size: int) -> int:
        """Memory of the host that the GPU copies from and to while the host does other things."""
        address = c_void_p()
        extra = (c_uint(0),) if self.kind == "hip" else ()
        self.call("MallocHost", byref(address), c_size_t(size), *extra)
        return address.value or 0

    def stream(self) -> c_void_p:
        """A new queue."""
        stream = c_void_p()
        flags = c_uint(_NON_BLOCKING)
        self.call("StreamCreate", byref(stream), flags)
        return stream

    def load(self, binary: bytes, symbol: str, shared: int) -> tuple[c_void_p, c_void_p]:
        """A module of a binary, and its function, which may have so much shared memory."""
        module, function = c_void_p(), c_void_p()
        self.call("ModuleLoad", byref(module), c_char_p(binary))
        self.call("ModuleFunction", byref(function), module, c_char_p(symbol.encode()))
        if self.kind == "cuda" and shared > _STATIC_SHARED:
            status = self.function("cuFuncSetAttribute")(function, c_int(_SHARED_OPTIN), c_int(shared))
            if status:
                raise self._error("ModuleFunction", status)
        return module, function

    def launch(
        self, function: c_void_p, grid: Sequence[int], threads: int, shared: int, stream: c_void_p, arguments: object
    ) -> None:
        """Put a kernel into a queue."""
        self.call(
            "Launch", function, *map(c_uint, grid), c_uint(threads), c_uint(1), c_uint(1), c_uint(shared), stream,
            arguments, None,
        )  # fmt: skip

    def begin_graph(self, stream: c_void_p) -> None:
        """From now on what enters the queue is noted and not run."""
        self.call("Begin", stream, c_int(_RELAXED))

    def end_graph(self, stream: c_void_p) -> c_void_p:
        """What was noted, ready to run as one."""
        graph, executable = c_void_p(), c_void_p()
        self.call("End", stream, byref(graph))
        try:
            self.call("Instantiate", byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self.call("GraphDestroy", graph)
        return executable


_UPDATE = "Install a newer driver of the vendor's."


@cache
def _found() -> tuple[tuple[Driver, ...], str]:
    """The GPUs, and why there is none if a driver said so."""
    found, reasons = [], []
    for kind, (library, _) in _LIBRARIES.items():
        try:
            found.append(Driver(kind))
        except AiccError as error:
            reasons += [error.message] if not error.message.startswith(f"there is no {library}") else []
    return tuple(found), " ".join(reasons)


def drivers() -> tuple[Driver, ...]:
    """The GPUs there are, one of each vendor's driver at most."""
    return _found()[0]


def why_none() -> str:
    """What drivers say that have no GPU; empty where there is no driver either."""
    return _found()[1]


def forget() -> None:
    """Look again the next time."""
    _found.cache_clear()
