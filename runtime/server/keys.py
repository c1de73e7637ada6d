"""Who may use the server: callers' keys, checked before anything else of a request is looked at."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from aicc.runtime.errors import UsageError
from aicc.runtime.server.errors import ApiError, answer_error

_MOST_BYTES = 1 << 20  # of a file of keys


class ApiKeys:
    """The keys a server takes, held as SHA-256 digests only.

    Args:
        keys: At least one.
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._digests = [hashlib.sha256(key).digest() for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ApiKeys:
        """Keys from a file, one a line; empty lines and lines that begin with ``#`` are none.

        Raises:
            UsageError: The file cannot be read, has no key, or one that no header could carry.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise UsageError(f"the key file {os.fspath(path)} cannot be read ({error.strerror}).") from error
        if len(content) > _MOST_BYTES:
            raise UsageError(f"the key file {os.fspath(path)} is larger than {_MOST_BYTES} bytes.")
        keys = []
        for number, line in enumerate(content.splitlines(), 1):
            key = line.strip()
            if not key or key.startswith(b"#"):
                continue
            if not all(33 <= byte <= 126 for byte in key):
                raise UsageError(
                    f"line {number} of the key file {os.fspath(path)} is no key.",
                    "Keys are printable ASCII without spaces, one a line.",
                )
            keys.append(key)
        if not keys:
            raise UsageError(f"the key file {os.fspath(path)} has no keys.", "Write one a line, such as 32 hex digits.")
        return cls(keys)

    def __contains__(self, key: bytes) -> bool:
        """Whether a key is one of these, in a time that does not depend on which or how nearly."""
        digest = hashlib.sha256(key).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0

    def check(self, authorization: Sequence[bytes]) -> None:
        """Look for one of these in a request's ``Authorization`` headers.

        Raises:
            ApiError: There is not one header, with the scheme Bearer and a key of these.
        """
        if len(authorization) == 1:
            scheme, _, key = authorization[0].partition(b" ")
            if scheme.lower() == b"bearer" and key.strip() in self:
                return
        message = "This server needs an API key: the header 'Authorization: Bearer KEY' with a key it knows."
        error = ApiError(401, message, "invalid_api_key")
        error.headers["www-authenticate"] = "Bearer"
        raise error


class RequireKey:
    """Answers 401 to requests without ``Authorization: Bearer KEY``.

    Args:
        app: Gets the other requests.
        keys: The keys that are taken.
        open_paths: Paths that need none.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on, as ASGI has it."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            try:
                self._keys.check([value for name, value in scope["headers"] if name == b"authorization"])
            except ApiError as error:
                await answer_error(error, scope, receive, send)
                return
        await self._app(scope, receive, send)
