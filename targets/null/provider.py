"""The run-time half: find the device, say whether an executable fits it, load it.

Copying this: keep the vendor's imports inside the methods, because the runtime loads this file to
answer questions about machines that lack them. ``load`` returns an executable that has ``run``,
and for decoders ``forward`` too (:mod:`aicc.runtime.provider`). This one borrows both from
:mod:`aicc.targets.portable`, which needs only "arrays in, arrays out"; a chip with paged
attention of its own implements ``forward`` itself and is much faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aicc.runtime.errors import MismatchError, UnsupportedError
from aicc.runtime.provider import Array, Compatibility, Device, Executable, Fit, LoadOptions

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Variant

_DEVICE = "ONNX reference evaluator (null:host)"


class NullProvider:
    """Runs the portable graph node by node."""

    def devices(self) -> list[Device]:
        """The one device there always is; a real provider asks its driver."""
        _onnx()
        return [Device("HOST", _DEVICE)]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Compare what the variant requires with what is here, without loading it."""
        made, here = variant.requires.get("onnx", ""), _onnx().__version__
        if made != here:
            # Runs, but is not what it was compiled and measured with: the caller is told.
            return Compatibility(Fit.USABLE, f"it was made with onnx {made}, and {here} is installed.")
        return Compatibility(Fit.OPTIMAL)

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Make it ready to run.

        Raises:
            UnsupportedError: The evaluator lacks an operator.
        """
        from onnx.reference import ReferenceEvaluator

        # A module of this package that itself needs nothing but numpy.
        from aicc.targets.portable import GraphDecoder, GraphExecutable, read_graph

        try:
            evaluator: Any = ReferenceEvaluator(read_graph(artifact, keep_external=False))
        except NotImplementedError as error:
            raise UnsupportedError(f"{_DEVICE} cannot run {artifact.path}: {error}.") from error

        def evaluate(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))

        manifest = artifact.manifest
        if manifest.llm is None:
            return GraphExecutable(evaluate, manifest.signatures, _DEVICE)
        # A decoder's memory is fixed when it is loaded; what the caller does not say is one full context.
        return GraphDecoder(evaluate, manifest.signatures, _DEVICE, options.kv_tokens or manifest.llm.context_length)


def _onnx() -> Any:
    """The vendor's package, or the remedy for its absence."""
    try:
        import onnx
    except ImportError as error:
        raise MismatchError("onnx is not installed.", "pip install 'aicc[compile]'") from error
    return onnx
