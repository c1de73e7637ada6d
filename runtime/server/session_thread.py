"""The thread of a model of tensors, which runs one call after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.model_thread import ModelThread
from aicc.runtime.session import Session

T = TypeVar("T")


class _Call:
    """Something to do with the model, and who waits for it."""

    def __init__(self, work: Callable[[Session], Any]) -> None:
        self.work = work
        self.answer: Future[Any] = Future()

    def run(self, session: Session) -> None:
        """Do it, unless nobody waits any more."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.work(session))
        except Exception as error:
            self.answer.set_exception(error)


class SessionThread(ModelThread[Session]):
    """Runs calls; arguments as :class:`ModelThread`."""

    def __init__(self, load: Callable[[], Session], most: int, changed: Callable[[Any], None] | None = None) -> None:
        super().__init__(load, most, changed)
        self._calls: deque[_Call] = deque()  # the one that runs is the first

    @property
    def open(self) -> int:
        """Calls running or waiting."""
        return len(self._calls)

    def check(self) -> Session:
        """The model, to ask what it takes, not to run it.

        Raises:
            ApiError: It is loading or has failed.
        """
        with self._lock:
            return self._ready_model()

    def submit(self, work: Callable[[Session], T]) -> Future[T]:
        """Have something done with the model; cancelling the future spares it if it has not begun.

        Raises:
            ApiError: The model is loading, has failed, or has too much to do.
        """
        call = _Call(work)
        with self._lock:
            self._ready_model()
            self._check_room(1, "calls")
            self._calls.append(call)
        self._wake.set()
        return call.answer

    def _prepare(self, model: Session) -> None:
        if model.manifest.embedding is not None:
            _ = model.embedder

    def _serve(self, model: Session) -> None:
        while not self._stopping:
            self._wake.clear()
            while self._calls and not self._stopping:
                self._calls[0].run(model)
                self._calls.popleft()
            if not self._stopping:
                self._wake.wait()

    def _end_all(self, error: ApiError) -> None:
        while self._calls:
            answer = self._calls.popleft().answer
            if not answer.done() and (answer.running() or answer.set_running_or_notify_cancel()):
                answer.set_exception(error)
