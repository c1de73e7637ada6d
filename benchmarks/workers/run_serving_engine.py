"""Worker for serving engines on a GPU, with random weights that they make themselves: ``vllm`` or ``sglang``."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any, Protocol

from protocol import Generated, serve


class _Library(Protocol):
    def complete(self, prompts: list[list[int]], tokens: int) -> None:
        """New tokens after each prompt, greedily and past any end."""
        ...


class _Vllm:
    def __init__(self, module: Any, model: str, context: int) -> None:
        self.module = module
        self.engine = module.LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=context,
            enable_prefix_caching=False,
        )

    def complete(self, prompts: list[list[int]], tokens: int) -> None:
        params = self.module.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)


class _SgLang:
    def __init__(self, module: Any, model: str, context: int) -> None:
        self.engine = module.Engine(
            model_path=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            context_length=context,
            disable_radix_cache=True,
        )

    def complete(self, prompts: list[list[int]], tokens: int) -> None:
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        self.engine.generate(input_ids=prompts, sampling_params=params)


_LIBRARIES = {"vllm": _Vllm, "sglang": _SgLang}


class ServingEngine:
    """Options: ``context``. The first token's time is that of a completion of one token, made apart."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`; ``model`` is a folder with a config.json."""
        name = sys.argv[1]
        module = import_module(name)
        self.library: _Library = _LIBRARIES[name](module, model, options["context"])
        return {name: module.__version__}

    def _seconds(self, prompts: list[list[int]], tokens: int) -> float:
        started = time.perf_counter()
        self.library.complete(prompts, tokens)
        return time.perf_counter() - started

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        started = time.perf_counter()
        seconds = self._seconds([ids], tokens)
        return Generated(started + self._seconds([ids], 1), started + seconds, tokens)

    def together(self, prompts: list[list[int]], tokens: int) -> float:
        """New tokens a second of all prompts in one batch, reading them not counted."""
        reading = self._seconds(prompts, 1)
        return len(prompts) * (tokens - 1) / (self._seconds(prompts, tokens) - reading)


if __name__ == "__main__":
    serve(ServingEngine())
