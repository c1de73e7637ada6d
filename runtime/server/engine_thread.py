"""The one thread that loads the model and steps its engine.

Nothing else runs on it: requests are tokenised before they come here, and what they emit is only
handed on. The event loop never waits for it either, except through queues.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.request import Request
from aicc.runtime.server.errors import ApiError

_FAILURES_IN_A_ROW = 3  # of steps, after which the device is taken for lost

State = Literal["loading", "ready", "failed", "stopped"]
log = logging.getLogger("uvicorn.error")


class EngineThread:
    """Serves requests from any thread.

    Args:
        load: Gives the model; called on the thread.
        most_sequences: Most sequences that may run, wait or be prepared at a time.
        changed: Called on the thread when it is ready, and when it has failed.
    """

    def __init__(
        self, load: Callable[[], Model], most_sequences: int, changed: Callable[[EngineThread], None] | None = None
    ) -> None:
        self.most_sequences = most_sequences
        self.state: State = "loading"
        self.error: BaseException | None = None
        self.model: Model | None = None
        self._load = load
        self._changed = changed or _log_failure
        self._open: list[Request] = []
        self._reserved = 0  # sequences that are being prepared
        self._lock = threading.Lock()  # guards state, _open and _reserved
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aicc-engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; requests that are open fail."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def open_sequences(self) -> int:
        """Sequences running, waiting or being prepared."""
        return len(self._open) + self._reserved

    def reserve(self, sequences: int) -> Model:
        """Keep room for so many sequences, until they are submitted or it is released.

        Raises:
            ApiError: The model is loading, has failed, or has too much to do.
        """
        with self._lock:
            model = self._ready_model()
            if sequences > self.most_sequences:
                message = f"The request asks for {sequences} generations and may ask for {self.most_sequences}."
                raise ApiError(400, message, "too_many")
            if self.open_sequences + sequences > self.most_sequences:
                message = f"The server has {self.open_sequences} generations to do. Try again later."
                raise ApiError(429, message, "queue_full", retry=True)
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

    def _ready_model(self) -> Model:
        if self.state == "loading":
            raise ApiError(503, "The model is still loading.", "model_loading", retry=True)
        if self.state != "ready" or self.model is None:
            raise ApiError(503, "The model has failed or is being shut down.", "model_unavailable")
        return self.model

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests and free their memory, after at most one step more."""
        if self.model is not None:
            for request in requests:
                self.model.engine.cancel(request)
            self._wake.set()

    def _run(self) -> None:
        try:
            self._prepare()
            self._serve()
        except BaseException as error:
            self.error = error
        with self._lock:
            self.state = "failed" if self.error is not None else "stopped"
        self._end_all(ApiError(503, "The model has failed or is being shut down.", "model_unavailable"))
        if self.error is not None:
            self._changed(self)

    def _prepare(self) -> None:
        """Load, and touch what would otherwise be read by the first request."""
        model = self._load()
        template = model.chat_template if model.has_chat_template else None
        if model.has_tokenizer:
            _ = model.tokenizer
        if template is not None:
            template.check()
        with self._lock:
            self.model, self.state = model, "ready"
        self._changed(self)

    def _serve(self) -> None:
        assert self.model is not None
        engine, failures = self.model.engine, 0
        while not self._stopping:
            self._wake.clear()
            worked = engine.step()
            failed = self._sweep()
            if worked:
                failures = failures + 1 if failed else 0
            if failures == _FAILURES_IN_A_ROW:
                raise RuntimeError(f"{failures} steps in a row have failed")
            if not worked:
                self._wake.wait()

    def _end_all(self, error: ApiError) -> None:
        for request in self._open:
            request.end("error", error)
        self.cancel(self._open)
        if self.model is not None:
            self.model.engine.settle()
        self._open = []

    def _sweep(self) -> bool:
        """Forget what has finished; whether any of it failed."""
        finished = [request for request in self._open if request.finish_reason is not None]
        if finished:
            with self._lock:
                self._open = [request for request in self._open if request.finish_reason is None]
        return any(request.finish_reason == "error" for request in finished)


def _log_failure(engine: EngineThread) -> None:
    if engine.error is not None:
        bug = None if isinstance(engine.error, AiccError) else engine.error
        log.error("The model cannot be served: %s", engine.error, exc_info=bug)
