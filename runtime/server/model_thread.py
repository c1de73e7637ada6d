"""The one thread that loads a model and runs it.

Nothing else runs on it: requests are tokenised before they come here, and what they emit is only
handed on. The event loop never waits for it either, except through queues.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from aicc.runtime.errors import AiccError
from aicc.runtime.generator import Model
from aicc.runtime.server.errors import ApiError, unavailable
from aicc.runtime.session import Session

State = Literal["loading", "ready", "failed", "stopped"]
PHASES = ("model", "tokenizer")  # of loading: mapping weights and making code ready, then what prompts need
M = TypeVar("M", bound=Model | Session)
log = logging.getLogger("uvicorn.error")


class ModelThread(ABC, Generic[M]):
    """Serves work from any thread on one model.

    Args:
        load: Gives the model; called on the thread.
        most: Most pieces of work that may run, wait or be prepared at a time.
        changed: Called on the thread when it is ready, and when it has failed.
    """

    def __init__(self, load: Callable[[], M], most: int, changed: Callable[[Any], None] | None = None) -> None:
        self.most = most
        self.state: State = "loading"
        self.phase = 0  # of PHASES, while loading
        self.started = time.monotonic()
        self.error: BaseException | None = None
        self.model: M | None = None
        self._load = load
        self._changed = changed or log_failure
        self._lock = threading.Lock()  # guards state and what a subclass counts
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aicc-engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it is computing; what is open fails."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    @abstractmethod
    def open(self) -> int:
        """Pieces of work running, waiting or being prepared."""

    @abstractmethod
    def _prepare(self, model: M) -> None:
        """Touch what would otherwise be read by the first request."""

    @abstractmethod
    def _serve(self, model: M) -> None:
        """Run what comes until told to stop."""

    @abstractmethod
    def _end_all(self, error: ApiError) -> None:
        """Fail everything that is open."""

    def _check_room(self, more: int, what: str) -> None:
        """Refuse work there is no room for; the lock is held.

        Raises:
            ApiError: There is too much to do.
        """
        if more > self.most:
            message = f"The request asks for {more} {what} and may ask for {self.most}."
            raise ApiError(400, message, "too_many")
        if self.open + more > self.most:
            message = f"The server has {self.open} {what} to do. Try again later."
            raise ApiError(429, message, "queue_full", retry=True)

    def _ready_model(self) -> M:
        if self.state == "loading":
            raise ApiError(503, "The model is still loading.", "model_loading", retry=True)
        if self.state != "ready" or self.model is None:
            raise unavailable()
        return self.model

    def _run(self) -> None:
        try:
            model = self._load()
            self.phase = 1
            self._prepare(model)
            with self._lock:
                self.model, self.state = model, "ready"
            self._changed(self)
            self._serve(model)
        except BaseException as error:
            self.error = error
        with self._lock:
            self.state = "failed" if self.error is not None else "stopped"
        self._end_all(unavailable())
        if self.error is not None:
            self._changed(self)


def log_failure(thread: ModelThread[Any]) -> None:
    """Tell the log why a thread has failed, if it has."""
    if thread.error is not None:
        bug = None if isinstance(thread.error, AiccError) else thread.error
        log.error("The model cannot be served: %s", thread.error, exc_info=bug)
