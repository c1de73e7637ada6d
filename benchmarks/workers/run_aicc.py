"""Worker for an aicc artifact, through the Python runtime as a program would embed it.

Arguments are modules to import before the clock starts, as the other engines' are: ``openvino``.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.metadata import version
from itertools import cycle
from typing import Any

from protocol import Generated, serve

from aicc.runtime import Model, load
from aicc.runtime.request import Piece
from aicc.runtime.sampling import SamplingParams


class Aicc:
    """Options: ``context``, the tokens its KV cache holds; ``prefix_cache``, whether it is used, else not."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`."""
        prefix_cache = options.get("prefix_cache", False)
        loaded = load(model, threads=threads, kv_tokens=options["context"], prefix_cache=prefix_cache)
        assert isinstance(loaded, Model)
        self.model = loaded
        return {name: version(name) for name in ("aicc", *sys.argv[1:])}

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        pieces = self.model.stream(ids, max_tokens=tokens, ignore_eos=True)
        stamps = [time.perf_counter() for _ in pieces]
        return Generated(stamps[0], stamps[-1], len(stamps))

    def together(self, prompts: list[list[int]], tokens: int) -> float:
        """Decode all prompts in one batch; new tokens a second of all of them, prefill not counted."""
        stamps: list[list[float]] = [[] for _ in prompts]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        for ids, mine in zip(prompts, stamps, strict=True):
            emit = lambda _, mine=mine: mine.append(time.perf_counter())  # noqa: E731
            self.model.engine.submit(self.model.request(ids, params, emit))
        while self.model.engine.step():
            pass
        begin, end = max(mine[0] for mine in stamps), min(mine[-1] for mine in stamps)
        return sum(begin < stamp <= end for mine in stamps for stamp in mine) / (end - begin)

    def users(self, prompts: list[list[int]], users: int, seconds: float, tokens: int) -> dict[str, Any]:
        """So many users, each asking again once answered, until ``seconds`` are over and all are answered."""
        exchanges: list[tuple[float, list[float]]] = []
        params, supply = SamplingParams(max_tokens=tokens, ignore_eos=True), cycle(prompts)

        def ask() -> None:
            stamps: list[float] = []
            exchanges.append((time.perf_counter(), stamps))

            def emit(piece: Piece) -> None:
                stamps.append(time.perf_counter())
                if piece.finish_reason is not None and stamps[-1] < begin + seconds:
                    ask()

            self.model.engine.submit(self.model.request(next(supply), params, emit))

        begin = time.perf_counter()
        for _ in range(users):
            ask()
        while self.model.engine.step():
            pass
        return {"begin": begin, "end": begin + seconds, "exchanges": exchanges}


if __name__ == "__main__":
    for module in sys.argv[1:]:
        import_module(module)
    serve(Aicc())
