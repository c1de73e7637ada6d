"""The run-time half: the portable graph through onnxruntime's CPU kernels, nothing fused across
quantisation, so that the numbers are those of the ONNX specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import MismatchError, UnsupportedError, first_line
from aicc.runtime.provider import Array, Compatibility, Device, Executable, Fit, LoadOptions
from aicc.targets.portable import GraphDecoder, GraphExecutable, read_graph

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_SILENT = 4  # onnxruntime logs what it also raises


class ReferenceProvider:
    """Runs portable graphs with onnxruntime."""

    def devices(self) -> list[Device]:
        """This machine's CPU."""
        return [Device("CPU", _device())]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether onnxruntime is here, and the one the variant was made with."""
        made, here = variant.requires.get("onnxruntime", ""), _onnxruntime().__version__
        if made != here:
            return Compatibility(Fit.USABLE, f"it was made with onnxruntime {made}, and {here} is installed.")
        return Compatibility(Fit.OPTIMAL)

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Make an inference session of the portable graph.

        Raises:
            UnsupportedError: onnxruntime cannot run a node.
        """
        onnxruntime = _onnxruntime()
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        settings.log_severity_level = _SILENT
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        if artifact.has(WEIGHTS_PATH):
            weights = artifact.weights()
            # By name and bytes: onnxruntime opens no path that a graph names.
            settings.add_external_initializers_from_files_in_memory([WEIGHTS_PATH], [weights], [len(weights)])
        graph = read_graph(artifact, keep_external=True).SerializeToString()
        try:
            session: Any = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes have no common base of their own
            raise UnsupportedError(f"onnxruntime cannot run {artifact.path}: {first_line(error)}.") from error
        names = [output.name for output in session.get_outputs()]
        run_settings = onnxruntime.RunOptions()
        run_settings.log_severity_level = _SILENT

        def evaluate(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return dict(zip(names, session.run(names, dict(inputs), run_settings), strict=True))

        manifest = artifact.manifest
        if manifest.llm is None:
            return GraphExecutable(evaluate, manifest.signatures, _device())
        return GraphDecoder(evaluate, manifest.signatures, _device(), options.kv_tokens or manifest.llm.context_length)


def _device() -> str:
    return f"onnxruntime {_onnxruntime().__version__} CPU (float32 reference)"


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MismatchError("onnxruntime is not installed.", "pip install 'aicc[compile]'") from error
    return onnxruntime
