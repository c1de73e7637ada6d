"""The HTTP server over a loaded artifact, speaking OpenAI's API, Ollama's and the Open Inference Protocol.

Needs the extra ``serve``; nothing else of the runtime imports it.
"""

from __future__ import annotations

from aicc.runtime.errors import MismatchError

try:
    from aicc.runtime.server.app import Front, Limits, create_app
    from aicc.runtime.server.keys import ApiKeys
    from aicc.runtime.server.listener import serve
    from aicc.runtime.server.recording import AccessLog
    from aicc.runtime.server.tracing import Tracing
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn", "prometheus_client"):
        raise
    raise MismatchError(f"the server needs {error.name}.", "Install it: pip install 'aicc[serve]'.") from error

__all__ = ["AccessLog", "ApiKeys", "Front", "Limits", "Tracing", "create_app", "serve"]
