"""Types of request fields that several APIs have.

Requests are strict: a field that is not listed is refused, and a field the API defines but this
server does not implement is listed with the type :data:`Unimplemented`, which takes only null, so
that asking for it is refused by name. The tables in ``docs/server.md`` are these definitions.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta

MAX_TOOLS = 128
MAX_INPUTS = 2048  # texts to embed
UNBOUNDED = 2**31 - 1  # tokens; the context ends a generation that names no limit

Unimplemented: TypeAlias = None
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
Schema: TypeAlias = dict[str, Any]
