"""onnxruntime sessions on the HTP, for the provider; and, as a program, the compiler of context binaries.

    python -m aicc.targets.hexagon.session SOURCE.onnx RESULT.onnx HTP PARTITION MEMORY_BYTES

runs apart from aicc, so that a compiler that hangs, crashes or takes all memory takes nothing with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aicc.runtime.errors import MismatchError

PACKAGE = "onnxruntime-qnn"
PARTITION = "partition"  # the name of that option of a variant
STEPS_FILE = "steps.json"  # of a decoder: which graphs there are
UNSUPPORTED = "Unsupported nodes in QNN EP:"  # how the provider begins the line that lists what it cannot run
NOTHING_TAKEN = "assigned to the default CPU EP"  # what onnxruntime says where the provider took not all nodes
_PROVIDER = "QNNExecutionProvider"
# QNN's number of the first chip with each architecture: it decides what half precision there is.
_CHIPS = {"73": "43", "75": "57", "79": "69", "81": "87"}
_ERRORS = 3  # log severity; the line above is an error to onnxruntime, warnings are about its own files


def installed() -> str:
    """The version of the provider's package.

    Raises:
        MismatchError: It is not installed.
    """
    from importlib import metadata

    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise MismatchError(f"{PACKAGE} is not installed.", "pip install 'aicc[hexagon]'") from error


def open_session(path: Path, htp: str, partition: str, result: Path | None = None) -> Any:
    """A session on the HTP.

    Args:
        path: A graph, or a compiled one.
        htp: Number of the architecture.
        partition: ``chip`` lets nothing fall back to the processor, ``host`` does.
        result: Where the compiled graph goes; None to run one.

    Raises:
        Exception: onnxruntime's own, if it cannot.
    """
    import onnxruntime
    import onnxruntime_qnn

    if not _devices():
        onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(partition == "chip")))
    if result is not None:
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_embed_mode", "1")
        settings.add_session_config_entry("ep.context_file_path", str(result))
    options = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_arch": htp,
        "soc_model": _CHIPS[htp],
        "enable_htp_fp16_precision": "1",
        "htp_graph_finalization_optimization_mode": "3",  # the compiler may take its time
    }
    settings.add_provider_for_devices(_devices()[:1], options)
    return onnxruntime.InferenceSession(path, settings)


def _devices() -> list[Any]:
    import onnxruntime

    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]


def _main(source: str, result: str, htp: str, partition: str, memory_bytes: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    open_session(Path(source), htp, partition, Path(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
