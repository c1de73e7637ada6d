"""Which names requests may call the server by.

A web page can let its own name resolve to 127.0.0.1 (DNS rebinding). A browser then takes the
server for the page's own, and lets the page use it. The name is in the Host header, by which such a
request is told from one that was meant for this server.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aicc.runtime.server.errors import ApiError, answer_error

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class KnownHosts:
    """Answers 400 to requests whose Host header has another name; ports do not matter.

    Args:
        app: Gets the other requests.
        hosts: Names and addresses, IPv6 without brackets.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on, as ASGI has it."""
        if scope["type"] != "http" or _name(host := Headers(scope=scope).get("host", "")) in self._hosts:
            await self._app(scope, receive, send)
            return
        message = (
            f"The Host header is '{host[:200]}', and this server answers to {', '.join(sorted(self._hosts))}. "
            "Use one of these as the address."
        )
        await answer_error(ApiError(400, message, "unknown_host"), scope, receive, send)


def _name(host: str) -> str | None:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
