"""Worker for llama.cpp, through the prebuilt wheel ``xllamacpp``."""

from __future__ import annotations

import time
from typing import Any

import xllamacpp
from protocol import Generated, serve


class LlamaCpp:
    """Options: ``context``. Its server object is used in-process; nothing goes through HTTP."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`."""
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_ctx = options["context"]
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False  # no engine here warms up inside its load time
        params.cache_prompt = False
        params.cache_ram_mib = 0
        params.verbosity = 0
        params.ui = False
        self.server = xllamacpp.Server(params)
        return {"xllamacpp": xllamacpp.__version__, "llama.cpp": str(xllamacpp.get_system_info()).strip()}

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        times: list[float] = []
        last: dict[str, Any] = {}

        def receive(chunk: dict[str, Any]) -> None:
            times.append(time.perf_counter())
            last.update(chunk)

        request = {
            "prompt": ids,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
        }
        self.server.handle_completions(request, receive)
        timings = last["timings"]
        if timings["cache_n"] or timings["prompt_n"] != len(ids):
            raise RuntimeError(f"the prompt was not computed in full: {timings}")
        figures = {"ttft_s": timings["prompt_ms"] / 1e3, "tokens_per_s": timings["predicted_per_second"]}
        # The last chunk brings no token, only the totals.
        return Generated(times[0], times[-2], timings["predicted_n"], figures)


if __name__ == "__main__":
    serve(LlamaCpp())
