"""Worker for an aicc artifact, through the Python runtime as a program would embed it."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import openvino  # noqa: F401 - imported before the clock starts, as the other engines are
from protocol import Generated, serve

from aicc.runtime import Model, load


class Aicc:
    """Options: ``context``, the tokens its KV cache holds."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, str]:
        """See :class:`protocol.Engine`."""
        loaded = load(model, threads=threads, kv_tokens=options["context"])
        assert isinstance(loaded, Model)
        self.model = loaded
        return {name: version(name) for name in ("aicc", "openvino")}

    def generate(self, ids: list[int], tokens: int) -> Generated:
        """See :class:`protocol.Engine`."""
        pieces = self.model.stream(ids, max_tokens=tokens, ignore_eos=True)
        stamps = [time.perf_counter() for _ in pieces]
        return Generated(stamps[0], stamps[-1], len(stamps))


if __name__ == "__main__":
    serve(Aicc())
