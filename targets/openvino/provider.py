"""The runtime half for OpenVINO: read the stored graph, put paged attention in, run it."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import AiccError, IntegrityError, MismatchError, ResourceError, UsageError
from aicc.runtime.manifest import damaged, decode_json
from aicc.runtime.provider import (
    Array,
    Compatibility,
    DecoderExecutable,
    Device,
    Executable,
    Fit,
    LoadOptions,
    TokenBatch,
)
from aicc.runtime.target import find_target
from aicc.targets.openvino.layout import DECODER_FILE, GRAPH_FILE, DecoderLayout
from aicc.targets.openvino.paged_attention import with_paged_attention

if TYPE_CHECKING:
    import openvino as ov

    from aicc.runtime.artifact import Artifact, Signature, Variant

# What an artifact may set: a manifest is not trusted with options that name files or devices.
_OPTIONS = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
MAX_BATCH_TOKENS = 512  # a longer prompt is prefilled in chunks of this, which bounds activations
# After so many tokens the embedding rows they read are given back: each row brings 64 KiB of its neighbours.
_GIVE_BACK_TOKENS = 128


class OpenVINOProvider:
    """Runs artifacts of the ``openvino`` family through OpenVINO's plugins."""

    def devices(self) -> list[Device]:
        """Devices the installed plugins find."""
        core = _core()
        return [Device(name, str(core.get_property(name, "FULL_DEVICE_NAME"))) for name in core.available_devices]

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether the device is here and the installed OpenVINO reads the stored graph."""
        device = find_target(variant.target).device
        openvino = _openvino()
        if not _has(device):
            return Compatibility(
                Fit.UNSUPPORTED, f"this machine has no {device} that OpenVINO can use; see `aicc doctor`."
            )
        made, here = variant.requires.get("openvino", ""), openvino.__version__.split("-")[0]
        if _version(here) < _version(made):
            return Compatibility(
                Fit.RECOMPILE,
                f"it was made with OpenVINO {made} and {here} is installed; upgrade openvino, or compile again.",
            )
        if here != made:
            return Compatibility(Fit.USABLE, f"it was made with OpenVINO {made}; {here} is installed.")
        return Compatibility(Fit.OPTIMAL)

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Read the graph, its constants mapped from the weights file, and compile it for the device.

        Raises:
            MismatchError: OpenVINO cannot compile it for the device.
            ResourceError: Not enough memory.
        """
        device = find_target(variant.target).device
        core = _core()
        if unknown := sorted(set(variant.options) - set(_OPTIONS)):
            raise IntegrityError(f"{artifact.path} asks for the option {unknown[0]}, which artifacts may not set.", "")
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **variant.options}
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
        graph = artifact.file(f"{variant.directory}/{GRAPH_FILE}")
        try:
            weights = MappedWeights(artifact.file(WEIGHTS_PATH) if artifact.has(WEIGHTS_PATH) else None)
            model = core.read_model(graph.read_bytes(), weights.tensor)
            if artifact.manifest.kind == "decoder":
                path = artifact.file(f"{variant.directory}/{DECODER_FILE}")
                layout = decode_json(path.read_bytes(), path, DecoderLayout)
                model = with_paged_attention(model, layout.layers)
                compiled = core.compile_model(model, device, config)
                llm = artifact.manifest.llm
                assert llm is not None
                _check_logits(compiled, graph, llm.vocab_size)
                return Decoder(compiled, artifact.manifest.signatures, weights, options.kv_tokens or llm.context_length)
            return Tensors(core.compile_model(model, device, config), artifact.manifest.signatures, weights)
        except (MemoryError, RuntimeError) as error:
            raise _failure(
                error,
                f"OpenVINO cannot load {graph} on {device}",
                "Compile the model again on this machine, or for another target.",
            ) from error


class MappedWeights:
    """The artifact's weights file in memory, page by page as it is read.

    The CPU plugin packs each weight into its kernel's layout when it is first multiplied with, and
    never reads the original again, so its pages are given back while the first step runs: the
    process then never holds the weights twice. A page that is needed again is read again.
    """

    def __init__(self, path: Path | None) -> None:
        import openvino as ov

        if path is None:  # a graph without constants
            self._map = mmap.mmap(-1, mmap.PAGESIZE)
        else:
            with path.open("rb") as file:  # a private mapping, as OpenVINO takes only writable arrays
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.tensor = ov.Tensor(np.frombuffer(self._map, np.uint8), shared_memory=True)

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Give pages back every few milliseconds while the block runs, and once after it."""
        done = threading.Event()

        def sweep() -> None:
            while not done.wait(0.005):
                self.give_back()

        thread = threading.Thread(target=sweep, name="aicc-give-back", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.give_back()

    def give_back(self) -> None:
        """Give back the pages in memory now."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Tensors:
    """A model of named arrays. Threads take turns: there is one infer request."""

    def __init__(self, compiled: ov.CompiledModel, signatures: Mapping[str, Signature], weights: MappedWeights) -> None:
        self._compiled: ov.CompiledModel | None = compiled
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._lock = threading.Lock()
        self._inputs = {name for port in compiled.inputs for name in port.get_names()}
        self._signatures = signatures
        self._weights = weights
        self._packed = False
        self._device = _device_name(compiled)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures as the manifest gives them."""
        return self._signatures

    @property
    def device(self) -> str:
        """Device and its full name, as the plugin says."""
        return self._device

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs are copies.

        Raises:
            UsageError: OpenVINO cannot compute with these inputs, or the model was closed.
        """
        # An input that cannot change the result (the empty axes of a reduction) is not one of OpenVINO's.
        used = {name: array for name, array in inputs.items() if name in self._inputs}
        with self._lock:
            request = self._open_request()
            try:
                with self._packing():
                    results = request.infer(used, share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise UsageError(f"{self._device} cannot run the model on these inputs: {_last_line(error)}") from error
            return {t.name: np.array(results[t.name]) for t in self._signatures[signature].outputs}

    def _open_request(self) -> ov.InferRequest:
        if self._request is None:
            raise UsageError("the model was closed.", "Load it again.")
        return self._request

    def _packing(self) -> AbstractContextManager[None]:
        first, self._packed = not self._packed, True
        return self._weights.given_back() if first else nullcontext()

    def close(self) -> None:
        """Release the compiled model, after what is running."""
        with self._lock:
            self._request = None
            self._compiled = None


class Decoder(Tensors, DecoderExecutable):
    """A decoder over paged KV memory, one page table for all layers."""

    def __init__(
        self,
        compiled: ov.CompiledModel,
        signatures: Mapping[str, Signature],
        weights: MappedWeights,
        kv_tokens: int,
    ) -> None:
        super().__init__(compiled, signatures, weights)
        import openvino as ov

        self._ov = ov
        caches = [i for i in compiled.inputs if "_cache." in i.get_any_name()]
        # A key cache may have rows for scales beside the tokens'; a value cache has one row a token.
        values = next(i for i in caches if i.get_any_name() == "value_cache.0")
        self._page_size = int(values.get_partial_shape()[2].get_length())
        self._tokens_read = 0
        self._page_count = -(-kv_tokens // self._page_size)
        self._memory = {i.get_any_name(): _allocate(i, self._page_count) for i in caches}
        for name, tensor in self._memory.items():
            self._open_request().set_tensor(name, tensor)

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self._page_size

    @property
    def page_count(self) -> int:
        """Pages allocated; untouched ones take no memory."""
        return self._page_count

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return MAX_BATCH_TOKENS

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step; see :class:`aicc.runtime.provider.DecoderExecutable`."""
        lengths = np.diff(batch.starts)
        positions = np.arange(len(batch.tokens), dtype=np.int64)
        positions += np.repeat(batch.past - batch.starts[:-1], lengths)
        tensors = {
            "input_ids": batch.tokens,
            "position_ids": positions,
            "past_lens": batch.past,
            "subsequence_begins": batch.starts,
            "block_indices": batch.pages,
            "block_indices_begins": batch.page_starts,
            "max_context_len": np.array((batch.past + lengths).max(), dtype=np.int32),
            "logit_rows": batch.logit_rows,
        }
        request, tensor = self._open_request(), self._ov.Tensor
        for name, array in tensors.items():
            request.set_tensor(name, tensor(array, shared_memory=True))
        try:
            with self._packing():
                request.infer()
        except (MemoryError, RuntimeError) as error:
            again = "Compile the model again on this machine, or for another target."
            raise _failure(error, f"{self._device} cannot run the model", again) from error
        self._tokens_read += len(batch.tokens)
        if self._tokens_read >= _GIVE_BACK_TOKENS:
            self._weights.give_back()
            self._tokens_read = 0
        logits: NDArray[np.float32] = request.get_output_tensor(0).data
        if len(logits) != len(batch.logit_rows):
            raise IntegrityError(
                f"the stored graph gives {len(logits)} rows of logits for {len(batch.logit_rows)}.",
                "Compile the model again.",
            )
        return logits

    def close(self) -> None:
        """Release the compiled model and the KV memory."""
        super().close()
        self._memory = {}


def _check_logits(compiled: ov.CompiledModel, graph: Path, vocab_size: int) -> None:
    """Refuse a vocabulary the graph does not have: token ids below its size are not checked again."""
    shapes = [str(output.get_partial_shape()) for output in compiled.outputs]
    if shapes != [f"[?,{vocab_size}]"]:
        raise damaged(graph, f"its outputs are {', '.join(shapes)}, and the manifest's vocabulary has {vocab_size}")


def _failure(error: Exception, what: str, remedy: str) -> AiccError:
    """OpenVINO raises one type for everything; what it says of memory tells the one case apart."""
    reason = _last_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in reason or "allocate" in reason:
        more = "Free some memory, give it fewer --kv-tokens, or compile the model with fewer bits (--quant int4)."
        return ResourceError(f"{what}: not enough memory ({reason}).", more)
    return MismatchError(f"{what}: {reason}", remedy)


def _allocate(cache: ov.ConstOutput, pages: int) -> ov.Tensor:
    import openvino as ov

    shape = [pages, *(d.get_length() for d in list(cache.get_partial_shape())[1:])]
    return ov.Tensor(cache.get_element_type(), ov.Shape(shape))


def _device_name(compiled: ov.CompiledModel) -> str:
    devices = compiled.get_property("EXECUTION_DEVICES")
    name = devices[0] if isinstance(devices, list) else str(devices)
    return f"OpenVINO {name} ({_core().get_property(name, 'FULL_DEVICE_NAME')})"


def _has(device: str) -> bool:
    """Whether there is one; asks its own plugin, as listing all devices would load every plugin."""
    try:
        return bool(_core().get_property(device, "AVAILABLE_DEVICES"))
    except RuntimeError:
        return False


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(p[:9]) for p in text.split(".")[:3] if p.isdecimal())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MismatchError("OpenVINO is not installed.", "pip install 'aicc[openvino]'") from error
    return openvino


@cache
def _core() -> ov.Core:
    return _openvino().Core()
