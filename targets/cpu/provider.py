"""The runtime half: a compiled library behind ``aicc_model.h``, called through ctypes."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import WEIGHTS_PATH
from aicc.runtime.errors import IntegrityError, MismatchError, ResourceError, UnsupportedError, UsageError
from aicc.runtime.machine import processor
from aicc.runtime.provider import OPTIMAL, Array, Compatibility, Device, Executable, Fit, LoadOptions, TokenBatch
from aicc.runtime.target import all_targets

if TYPE_CHECKING:
    from aicc.runtime.artifact import Artifact, Signature, Variant

_LIBRARY = "libmodel.so"
_ABI_VERSION = 1  # AICC_ABI_VERSION
_DECODER = 1  # AICC_DECODER
_MOST_THREADS = 256  # AICC_MAX_THREADS


class _Description(Structure):
    """``aicc_description``."""

    _fields_ = (
        ("abi_version", c_uint32), ("kind", c_int32), ("name", c_char_p), ("isa", c_char_p),
        ("weights_bytes", c_uint64), ("weights_id", c_uint64), ("vocab_size", c_int32), ("context_length", c_int32),
        ("layer_count", c_int32), ("page_tokens", c_int32), ("page_bytes", c_uint64), ("max_batch_tokens", c_int32),
        ("max_batch_sequences", c_int32), ("signature_count", c_int32), ("signatures", c_void_p),
    )  # fmt: skip


class _Options(Structure):
    """``aicc_options``."""

    _fields_ = (("threads", c_int32), ("pages", c_int32))


class _Batch(Structure):
    """``aicc_batch``."""

    _fields_ = (
        ("sequences", c_int32), ("token_count", c_int32), ("page_count", c_int32), ("logit_count", c_int32),
        ("tokens", c_void_p), ("starts", c_void_p), ("past", c_void_p), ("pages", c_void_p),
        ("page_starts", c_void_p), ("logit_rows", c_void_p),
    )  # fmt: skip


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
            ResourceError: Not enough memory.
            UsageError: More threads than can be started.
        """
        path = artifact.file(f"variants/{variant.name}/{_LIBRARY}")
        weights = artifact.file(WEIGHTS_PATH)
        library = _open_library(path)
        about: _Description = library.aicc_describe().contents
        if about.abi_version != _ABI_VERSION:
            raise MismatchError(
                f"{path} has version {about.abi_version} of the interface, and this aicc has {_ABI_VERSION}.",
                "Compile the model again.",
            )
        llm = artifact.manifest.llm
        if about.kind != _DECODER or llm is None or about.vocab_size != llm.vocab_size:
            raise IntegrityError(f"{path} is not the model that the manifest describes.", "Compile the model again.")
        if weights.stat().st_size < about.weights_bytes:
            raise IntegrityError(f"{weights} is shorter than {path} needs.", "Compile the model again.")
        if options.threads is not None and not 1 <= options.threads <= _MOST_THREADS:
            raise UsageError(f"{options.threads} threads cannot be started.", f"Give 1 to {_MOST_THREADS}.")
        tokens = options.kv_tokens or llm.context_length
        chosen = _Options(options.threads or 0, -(-tokens // about.page_tokens))
        return CpuDecoder(library, about, chosen, weights, artifact.manifest.signatures)


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
        library.aicc_describe.restype = POINTER(_Description)
        library.aicc_memory_size.restype = c_size_t
        library.aicc_memory_size.argtypes = (POINTER(_Options),)
        library.aicc_open_file.argtypes = (POINTER(c_void_p), POINTER(_Options), c_void_p, c_size_t, c_char_p)
        library.aicc_forward.argtypes = (c_void_p, c_void_p, c_void_p)
        library.aicc_close.argtypes = (c_void_p,)
        library.aicc_close.restype = None
        library.aicc_threads.argtypes = (c_void_p,)
        library.aicc_error_text.restype = c_char_p
    except (OSError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a model library: {error}.", "Compile the model again.") from error
    return library


class CpuDecoder:
    """A decoder over paged KV memory; threads of the caller take turns outside of it."""

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
        self._library, self._signatures = library, signatures
        self._page_size, self._page_count = about.page_tokens, options.pages
        self._most_tokens, self._vocab = about.max_batch_tokens, about.vocab_size
        self._model: c_void_p | None = c_void_p()
        view = ctypes.c_char.from_buffer(self._memory)
        address = ctypes.addressof(view)
        del view
        status = library.aicc_open_file(byref(self._model), byref(options), address, size, bytes(weights))
        if status:
            self._model = None
            self._memory.close()
            raise IntegrityError(f"{weights} cannot be opened: {self._text(status)}.", "Compile the model again.")
        self._device = f"CPU: {processor().model} ({about.isa.decode()}, {library.aicc_threads(self._model)} threads)"
        self._batch = _Batch()
        self._batch_address = ctypes.addressof(self._batch)
        self._logits = np.empty((0, self._vocab), np.float32)
        self._logits_address = 0

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures as the manifest gives them."""
        return self._signatures

    @property
    def device(self) -> str:
        """The processor, the instruction set the code uses and its threads."""
        return self._device

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self._page_size

    @property
    def page_count(self) -> int:
        """Pages there are; untouched ones take no memory."""
        return self._page_count

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return self._most_tokens

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """A decoder has no tensors.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("a decoder of the cpu family takes tokens.", "Use Model.generate or logits.")

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
        if wanted > len(self._logits):
            self._logits = np.empty((wanted, self._vocab), np.float32)
            self._logits_address = self._logits.ctypes.data
        logits = self._logits[:wanted]
        status = self._library.aicc_forward(self._model, self._batch_address, self._logits_address)
        if status:
            raise UsageError(f"the step cannot be computed: {self._text(status)}.")
        return logits

    def close(self) -> None:
        """Stop the threads and give the memory back."""
        model, self._model = self._model, None
        if model is not None:
            self._library.aicc_close(model)
            self._memory.close()

    def _text(self, status: int) -> str:
        return str(self._library.aicc_error_text(status).decode())


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
