"""The runtime half: a compiled library behind ``aicc_model.h``, called through ctypes."""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import AiccError, IntegrityError, MismatchError, ResourceError, UsageError
from aicc.runtime.machine import processor
from aicc.runtime.provider import (
    OPTIMAL,
    Array,
    Compatibility,
    DecoderExecutable,
    Device,
    Executable,
    Fit,
    LoadOptions,
    TokenBatch,
)
from aicc.runtime.target import all_targets

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Signature, Variant

_LIBRARY = "libmodel.so"
_ABI_VERSION = 2  # AICC_ABI_VERSION
_DECODER, _TENSORS = 1, 2  # aicc_kind
_INT64 = 4  # AICC_I64
_MAX_RANK = 8  # AICC_MAX_RANK
# aicc_status: AICC_ERROR_THREADS, AICC_ERROR_TOKEN, AICC_ERROR_CONTEXT, AICC_ERROR_MACHINE
_THREADS, _TOKEN, _CONTEXT, _MACHINE = 5, 6, 9, 12
_MOST_THREADS = 256  # AICC_MAX_THREADS
_MOST_PAGES = 2**31 - 1  # of an int32


class _Description(Structure):
    """``aicc_description``."""

    _fields_ = (
        ("abi_version", c_uint32), ("kind", c_int32), ("name", c_char_p), ("isa", c_char_p),
        ("weights_bytes", c_uint64), ("weights_id", c_uint64), ("vocab_size", c_int32), ("context_length", c_int32),
        ("layer_count", c_int32), ("page_tokens", c_int32), ("page_bytes", c_uint64), ("max_batch_tokens", c_int32),
        ("max_batch_sequences", c_int32), ("prompts_apart", c_int32), ("signature_count", c_int32),
        ("signatures", c_void_p),
    )  # fmt: skip


class _Options(Structure):
    """``aicc_options``."""

    _fields_ = (("threads", c_int32), ("pages", c_int32))


class _Batch(Structure):
    """``aicc_batch``."""

    _fields_ = (
        ("sequences", c_int32), ("token_count", c_int32), ("page_count", c_int32), ("logit_count", c_int32),
        ("tokens", c_void_p), ("starts", c_void_p), ("past", c_void_p), ("pages", c_void_p),
        ("page_starts", c_void_p), ("logit_rows", c_void_p), ("first_prompt", c_int32),
    )  # fmt: skip


class _Port(Structure):
    """``aicc_port``."""

    _fields_ = (("name", c_char_p), ("type", c_int32), ("rank", c_int32), ("shape", c_int64 * _MAX_RANK))


class _Signature(Structure):
    """``aicc_signature``."""

    _fields_ = (
        ("name", c_char_p), ("input_count", c_int32), ("output_count", c_int32),
        ("inputs", POINTER(_Port)), ("outputs", POINTER(_Port)),
    )  # fmt: skip


class _Tensor(Structure):
    """``aicc_tensor``."""

    _fields_ = (("data", c_void_p), ("type", c_int32), ("rank", c_int32), ("shape", c_int64 * _MAX_RANK))


class CpuProvider:
    """Runs artifacts of the ``cpu`` family."""

    def devices(self) -> list[Device]:
        """This machine's processor, if there is a variant for it."""
        here = processor()
        runs = any(t.family == "cpu" and t.runs_on(here) for t in all_targets().values())
        return [Device("CPU", here.model)] if runs else []

    def compatibility(self, variant: Variant) -> Compatibility:
        """Whether this processor has the instructions that the library uses."""
        here = processor()
        made_for = variant.requires.get("architecture", "")
        if made_for != here.architecture:
            reason = f"it was made for {made_for} and this machine is {here.architecture}."
            return Compatibility(Fit.UNSUPPORTED, reason)
        missing = sorted(set(variant.requires.get("instruction_sets", "").split()) - set(here.instruction_sets))
        if missing:
            return Compatibility(
                Fit.RECOMPILE, f"this processor lacks {', '.join(missing)}; compile for --target cpu on it."
            )
        return OPTIMAL

    def load(self, artifact: Artifact, variant: Variant, options: LoadOptions) -> Executable:
        """Open the library over the mapped weights.

        Raises:
            IntegrityError: The library is not one of aicc's, or was made with other weights.
            MismatchError: The system keeps the library's instructions from this process.
            ResourceError: Not enough memory, or the system refuses a thread.
            UsageError: More threads than there can be.
        """
        path = artifact.file(f"{variant.directory}/{_LIBRARY}")
        library = _open_library(path)
        try:
            return _open_model(artifact, path, library, options)
        except BaseException:
            _unload(library)
            raise


def _open_model(artifact: Artifact, path: Path, library: ctypes.CDLL, options: LoadOptions) -> Executable:
    """What the library at ``path`` is, over the artifact's weights; errors as :meth:`CpuProvider.load`."""
    about = _Description.from_buffer_copy(library.aicc_describe().contents)  # outlives the library
    weights = artifact.file(WEIGHTS_PATH)
    if about.abi_version != _ABI_VERSION:
        raise MismatchError(
            f"{path} has version {about.abi_version} of the interface, and this aicc has {_ABI_VERSION}.",
            "Compile the model again.",
        )
    llm = artifact.manifest.llm
    if about.kind != (_DECODER if llm else _TENSORS) or (llm and about.vocab_size != llm.vocab_size):
        raise IntegrityError(f"{path} is not the model that the manifest describes.", "Compile the model again.")
    if weights.stat().st_size < about.weights_bytes:
        raise IntegrityError(f"{weights} is shorter than {path} needs.", "Compile the model again.")
    if options.threads is not None and not 1 <= options.threads <= _MOST_THREADS:
        raise UsageError(f"{options.threads} threads cannot be started.", f"Give 1 to {_MOST_THREADS}.")
    tokens = options.kv_tokens or (llm.context_length if llm else 0)
    pages = -(-tokens // about.page_tokens)
    if pages > _MOST_PAGES:
        raise ResourceError(f"there is no memory for keys and values of {tokens} tokens.", "Give fewer --kv-tokens.")
    chosen = _Options(options.threads or min(processor().usable_cores, _MOST_THREADS), pages)
    kind = CpuDecoder if llm else CpuTensors
    return kind(library, about, chosen, weights, artifact.manifest.signatures)


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
        library.aicc_describe.restype = POINTER(_Description)
        library.aicc_memory_size.restype = c_size_t
        library.aicc_memory_size.argtypes = (POINTER(_Options),)
        library.aicc_open_file.argtypes = (POINTER(c_void_p), POINTER(_Options), c_void_p, c_size_t, c_char_p)
        library.aicc_forward.argtypes = (c_void_p, c_void_p, c_void_p)
        library.aicc_run.argtypes = (c_void_p, c_int32, POINTER(_Tensor), POINTER(_Tensor))
        library.aicc_close.argtypes = (c_void_p,)
        library.aicc_close.restype = None
        library.aicc_threads.argtypes = (c_void_p,)
        library.aicc_error_text.restype = c_char_p
    except (OSError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a model library: {error}.", "Compile the model again.") from error
    return library


def _unload(library: ctypes.CDLL) -> None:
    """Forget a library: the system would take it for a later one at the same path, whatever is there by then."""
    _ctypes.dlclose(library._handle)


class _OpenModel:
    """A library, its memory and its threads; threads of the caller take turns outside of it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        about: _Description,
        options: _Options,
        weights: Path,
        signatures: Mapping[str, Signature],
    ) -> None:
        size = library.aicc_memory_size(byref(options))
        try:  # untouched pages of it take no memory
            self._memory = mmap.mmap(-1, size or 1)
        except (OSError, ValueError, OverflowError) as error:
            raise ResourceError(
                f"there is no memory for {options.pages} pages of keys and values, {size} bytes in all.",
                "Give fewer --kv-tokens.",
            ) from error
        self._library, self._about, self._signatures = library, about, signatures
        self._model: c_void_p | None = c_void_p()
        view = ctypes.c_char.from_buffer(self._memory)
        address = ctypes.addressof(view)
        del view
        status = library.aicc_open_file(byref(self._model), byref(options), address, size, bytes(weights))
        if status:
            self._model = None
            self._memory.close()
            raise self._not_opened(status, weights)
        self._device = f"CPU: {processor().model} ({about.isa.decode()}, {library.aicc_threads(self._model)} threads)"

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures as the manifest gives them."""
        return self._signatures

    @property
    def device(self) -> str:
        """The processor, the instruction set the code uses and its threads."""
        return self._device

    def close(self) -> None:
        """Stop the threads and give the memory back."""
        model, self._model = self._model, None
        if model is not None:
            self._library.aicc_close(model)
            self._memory.close()
            _unload(self._library)

    def _not_opened(self, status: int, weights: Path) -> AiccError:
        reason = f"{weights} cannot be opened: {self._text(status)}."
        if status == _THREADS:
            return ResourceError(reason, "Give fewer --threads, or raise the limits of memory and processes.")
        if status == _MACHINE:
            return MismatchError(reason, "Compile the model for another target, such as cpu:avx512-vnni.")
        return IntegrityError(reason, "Compile the model again.")

    def _text(self, status: int) -> str:
        return str(self._library.aicc_error_text(status).decode())


class CpuTensors(_OpenModel):
    """A model of tensors: integers of each token in, rows of activations out."""

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; inputs of one shape ``[batch, length]``, in any batch.

        Raises:
            UsageError: Shapes differ, a sequence is too long, or a number is outside its table.
        """
        if self._model is None:
            raise UsageError("the model was closed.", "Load it again.")
        ports = _Signature.from_address(self._about.signatures)
        arrays = [inputs[ports.inputs[i].name.decode()] for i in range(ports.input_count)]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise UsageError(f"the inputs have different shapes: {', '.join(map(str, sorted(shapes)))}.")
        given = (_Tensor * len(arrays))()
        for tensor, array in zip(given, arrays, strict=True):
            tensor.data, tensor.type, tensor.rank = array.ctypes.data, _INT64, array.ndim
            tensor.shape[: array.ndim] = array.shape
        outputs, made = {}, (_Tensor * ports.output_count)()
        for i in range(ports.output_count):
            array = np.empty((*arrays[0].shape, ports.outputs[i].shape[2]), np.float32)
            outputs[ports.outputs[i].name.decode()] = array
            made[i].data = array.ctypes.data
        status = self._library.aicc_run(self._model, 0, given, made)
        if status == _CONTEXT:
            length, most = arrays[0].shape[1], self._about.context_length
            raise UsageError(f"the inputs are {length} tokens long, and this model takes {most} at most.", "Cut them.")
        if status == _TOKEN:
            raise UsageError("a number in the inputs is below 0 or not below the size of the table it looks into.")
        if status:
            raise UsageError(f"the inputs cannot be computed: {self._text(status)}.")
        return outputs


class CpuDecoder(_OpenModel, DecoderExecutable):
    """A decoder over paged KV memory."""

    def __init__(
        self,
        library: ctypes.CDLL,
        about: _Description,
        options: _Options,
        weights: Path,
        signatures: Mapping[str, Signature],
    ) -> None:
        super().__init__(library, about, options, weights, signatures)
        self._page_count = options.pages
        self._batch = _Batch()
        self._batch_address = ctypes.addressof(self._batch)
        self._logits = np.empty((0, about.vocab_size), np.float32)
        self._logits_address = 0

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return int(self._about.page_tokens)

    @property
    def page_count(self) -> int:
        """Pages there are; untouched ones take no memory."""
        return self._page_count

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return int(self._about.max_batch_tokens)

    @property
    def prompts_apart(self) -> bool:
        """Whether the library has kernels of their own for prompts."""
        return bool(self._about.prompts_apart)

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step; see :class:`aicc.runtime.provider.DecoderExecutable`."""
        if self._model is None:
            raise UsageError("the model was closed.", "Load it again.")
        count, wanted = len(batch.past), len(batch.logit_rows)
        if len(batch.starts) != count + 1 or len(batch.page_starts) != count + 1:
            raise UsageError("the batch contradicts itself: its starts and sequences do not match.")
        c = self._batch
        c.sequences, c.token_count, c.page_count, c.logit_count = count, len(batch.tokens), len(batch.pages), wanted
        c.tokens, c.starts, c.past = _int64(batch.tokens), _int32(batch.starts), _int32(batch.past)
        c.pages, c.page_starts, c.logit_rows = _int32(batch.pages), _int32(batch.page_starts), _int32(batch.logit_rows)
        c.first_prompt = batch.first_prompt
        if wanted > len(self._logits):
            self._logits = np.empty((wanted, self._about.vocab_size), np.float32)
            self._logits_address = self._logits.ctypes.data
        logits = self._logits[:wanted]
        status = self._library.aicc_forward(self._model, self._batch_address, self._logits_address)
        if status:
            raise UsageError(f"the step cannot be computed: {self._text(status)}.")
        return logits


def _int32(array: NDArray[np.int32]) -> int:
    return _address(array, "i4")


def _int64(array: NDArray[np.int64]) -> int:
    return _address(array, "i8")


def _address(array: Array, kind: str) -> int:
    """Where an array's bytes are; C reads them, so they must be what the batch promises."""
    facts = array.__array_interface__
    if facts["typestr"][1:] != kind or facts["strides"] is not None or len(facts["shape"]) != 1:
        raise UsageError(f"the batch has an array of {array.dtype} {array.shape} where contiguous {kind} are needed.")
    address: int = facts["data"][0]
    return address
