"""The thread of a decoder, which does nothing but step its engine."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from aicc.runtime.engine import Engine
from aicc.runtime.generator import Model
from aicc.runtime.request import Request
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.model_thread import ModelThread

_FAILURES_IN_A_ROW = 3  # of steps, after which the device is taken for lost


class EngineObserver:
    """Told what the engine does, on its thread, so it must be quick; this one takes no notice."""

    def step(self, engine: Engine, sequences: int) -> None:
        """A step ran so many sequences."""

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        """A sequence has its first token.

        Args:
            seconds: Since its request's headers were there.
            queue_seconds: Since it was handed to the engine, less the steps that read its prompt.
        """

    def next_tokens(self, count: int, seconds: float) -> None:
        """A sequence has more tokens, so long after those before."""


class EngineThread(ModelThread[Model]):
    """Runs sequences; arguments as :class:`ModelThread`.

    Attributes:
        observer: Told what the engine does.
    """

    def __init__(self, load: Callable[[], Model], most: int, changed: Callable[[Any], None] | None = None) -> None:
        super().__init__(load, most, changed)
        self.observer = EngineObserver()
        self._open: list[Request] = []
        self._reserved = 0  # sequences that are being prepared
        self._outbox: dict[AbstractEventLoop, list[Callable[[], None]]] = {}

    @property
    def open(self) -> int:
        """Sequences running, waiting or being prepared."""
        return len(self._open) + self._reserved

    def reserve(self, sequences: int) -> Model:
        """Keep room for so many sequences, until they are submitted or it is released.

        Raises:
            ApiError: The model is loading, has failed, or has too much to do.
        """
        with self._lock:
            model = self._ready_model()
            self._check_room(sequences, "generations")
            self._reserved += sequences
            return model

    def release(self, sequences: int) -> None:
        """Give up room that was reserved."""
        with self._lock:
            self._reserved -= sequences

    def submit(self, requests: Sequence[Request]) -> None:
        """Run requests in the room reserved for them, together or not at all.

        Raises:
            ApiError: The model has failed; the room stays reserved.
        """
        with self._lock:
            engine = self._ready_model().engine
            self._reserved -= len(requests)
            self._open.extend(requests)
        for request in requests:
            engine.submit(request)
        self._wake.set()

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests and free their memory, after at most one step more."""
        if self.model is not None:
            for request in requests:
                self.model.engine.cancel(request)
            self._wake.set()

    def call_after_step(self, loop: AbstractEventLoop, call: Callable[[], None]) -> None:
        """Have an event loop call something once this step is done; on the engine's thread.

        A loop is woken once for all that a step brought. Woken for each piece, it would take the interpreter's
        lock from the engine as often.
        """
        self._outbox.setdefault(loop, []).append(call)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for loop, calls in outbox.items():
            with suppress(RuntimeError):  # the loop is gone: so is whoever wanted to know
                loop.call_soon_threadsafe(_call_all, calls)

    def _prepare(self, model: Model) -> None:
        template = model.chat_template if model.has_chat_template else None
        if model.has_tokenizer:
            _ = model.tokenizer
        if template is not None:
            template.check()

    def _serve(self, model: Model) -> None:
        engine = model.engine
        while not self._stopping:
            self._wake.clear()
            sequences = engine.step()
            self._flush()
            self._sweep()
            if sequences:
                self.observer.step(engine, sequences)
            if engine.failures == _FAILURES_IN_A_ROW:
                raise RuntimeError(f"{engine.failures} steps in a row have failed")
            if not sequences:
                self._wake.wait()

    def _end_all(self, error: ApiError) -> None:
        for request in self._open:
            request.end("error", error)
        self.cancel(self._open)
        if self.model is not None:
            self.model.engine.settle()
        self._flush()
        self._open = []

    def _sweep(self) -> None:
        """Forget what has finished."""
        if any(request.finish_reason is not None for request in self._open):
            with self._lock:
                self._open = [request for request in self._open if request.finish_reason is None]


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
