"""The end of a server's life: what runs is finished, and what comes is sent elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from aicc.runtime.server.errors import ApiError, answer_error


class Drain:
    """Whether the server is ending, and how many requests it still answers."""

    def __init__(self) -> None:
        self.draining = False
        self.open = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while it is answered.

        Raises:
            ApiError: The server is ending and takes no more.
        """
        if self.draining:
            message = "The server is shutting down. Try another one, or again later."
            raise ApiError(503, message, "shutting_down", retry=True)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


class Draining:
    """Counts requests that are being answered; once draining, answers new ones 503.

    Args:
        app: Answers the others.
        drain: The count and the switch.
        exempt: Paths that are neither counted nor refused.
    """

    def __init__(self, app: ASGIApp, drain: Drain, exempt: Collection[str]) -> None:
        self._app = app
        self._drain = drain
        self._exempt = frozenset(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on, as ASGI has it."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        with ExitStack() as answered:
            try:
                answered.enter_context(self._drain.answering())
            except ApiError as error:
                await answer_error(error, scope, receive, send)
                return
            await self._app(scope, receive, send)
