"""Worker for llama.cpp compiled for this machine, through the C interface in ``llama-cpp-python``."""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import numpy as np
from protocol import Generated, serve

_STEP_TOKENS = 512  # prompt tokens computed at once, as llama.cpp's own programs do


class LlamaCpp:
    """Options: ``context``."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`."""
        llama_cpp.llama_backend_init()
        loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not loaded:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = options["context"]
        params.n_ubatch = _STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(loaded, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {model}")
        built = llama_cpp.llama_print_system_info().decode().strip()
        return {"llama-cpp-python": llama_cpp.__version__, "llama.cpp": built}

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        times: list[float] = []
        while len(times) < tokens:
            held = (llama_cpp.llama_token * len(ids))(*ids)  # the batch only points at it
            if status := llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(held, len(ids))):
                raise RuntimeError(f"llama_decode returned {status}")
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            ids = [int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())]
            times.append(time.perf_counter())
        return Generated(times[0], times[-1], tokens)


if __name__ == "__main__":
    serve(LlamaCpp())
