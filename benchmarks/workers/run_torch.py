"""Worker for torch on a GPU: a transformers model of a config, with random weights made on the device."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from protocol import Generated, serve


class Torch:
    """Options: ``context``; ``device``; ``compiled``, whether steps are compiled and run as CUDA graphs."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`; ``model`` is a folder with a config.json."""
        self.device, self.context = options["device"], options["context"]
        config = transformers.AutoConfig.from_pretrained(model)
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.step = self.model.forward
        if options["compiled"]:
            self.step = torch.compile(self.model.forward, mode="reduce-overhead", fullgraph=True)
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    @torch.no_grad()
    def _greedy(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """When each new token of all prompts, which have one length, was known."""
        cache = transformers.StaticCache(config=self.model.config, max_cache_len=self.context)
        ids = torch.tensor(prompts, device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        logits = self.model(ids, past_key_values=cache, position_ids=positions, logits_to_keep=1).logits
        stamps = []
        for number in range(tokens):
            chosen = logits[:, -1].argmax(dim=-1, keepdim=True)
            chosen.tolist()  # what a caller gets, and what waits for the device
            stamps.append(time.perf_counter())
            if number + 1 < tokens:
                torch.compiler.cudagraph_mark_step_begin()
                positions = positions[:, -1:] + 1
                logits = self.step(chosen, past_key_values=cache, position_ids=positions).logits
        return stamps

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        stamps = self._greedy([ids], tokens)
        return Generated(stamps[0], stamps[-1], len(stamps))

    def together(self, prompts: list[list[int]], tokens: int) -> float:
        """New tokens a second of all prompts in one batch, reading them not counted."""
        self._greedy(prompts, 3)  # compiles for this batch
        stamps = self._greedy(prompts, tokens)
        return len(prompts) * (tokens - 1) / (stamps[-1] - stamps[0])


if __name__ == "__main__":
    serve(Torch())
