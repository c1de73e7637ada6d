"""Worker for openvino-genai's ``LLMPipeline``, fed by an OpenVINO folder or a GGUF file."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Generated, serve


class Stamps(openvino_genai.StreamerBase):
    """Notes when each token arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        """Called by the pipeline with one token, or several at once."""
        self.times += [time.perf_counter()] * (1 if isinstance(token, int) else len(token))
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


class OpenVinoGenAi:
    """Options: ``backend`` is ``PA`` (paged attention, its default) or ``SDPA`` (stateful)."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`."""
        backend = options["backend"]
        properties: dict[str, Any] = {"ATTENTION_BACKEND": backend, "INFERENCE_NUM_THREADS": threads}
        if backend == "PA":
            # As its own default for one request, except that prompts are not answered from memory.
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.max_num_batched_tokens = 1 << 30
            scheduler.enable_prefix_caching = False
            properties["scheduler_config"] = scheduler
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", **properties)
        return {"openvino-genai": openvino_genai.__version__, "openvino": openvino.__version__}

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        stamps = Stamps()
        result = self.pipeline.generate(openvino.Tensor(np.array([ids], np.int64)), config, stamps)
        metrics = result.perf_metrics
        figures = {"ttft_s": metrics.get_ttft().mean / 1e3, "tokens_per_s": 1e3 / metrics.get_tpot().mean}
        return Generated(stamps.times[0], stamps.times[-1], len(stamps.times), figures)


if __name__ == "__main__":
    serve(OpenVinoGenAi())
