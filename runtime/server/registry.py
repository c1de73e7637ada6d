"""The models behind one server, by the names requests call them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import msgspec

from aicc.runtime.artifact import Manifest
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.server.engine_thread import EngineThread
from aicc.runtime.server.errors import ApiError
from aicc.runtime.server.session_thread import SessionThread
from aicc.runtime.session import Session

Thread = TypeVar("Thread", bound=EngineThread | SessionThread)


class Served(Generic[Thread]):
    """One model: its name, and the threads that work for it.

    Args:
        name: What requests call it.
        manifest: Its artifact's.
        thread: Where it is loaded and run.

    Attributes:
        created: When it was put up, in seconds since the epoch.
        text: The one thread for its text, off the event loop: tokenizers share state between calls.
        digest: SHA-256 of its manifest, which has those of its files.
        fingerprint: The same in short, as OpenAI's answers have it.
    """

    def __init__(self, name: str, manifest: Manifest, thread: Thread) -> None:
        self.name = name
        self.manifest = manifest
        self.thread = thread
        self.created = int(time.time())
        self.text = ThreadPoolExecutor(1, f"aicc-text-{name}")
        self.digest = hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
        self.fingerprint = "fp_" + self.digest[:12]

    def stop(self) -> None:
        """End its threads; the model stays loaded."""
        self.thread.stop()
        self.text.shutdown(wait=False, cancel_futures=True)


Decoder = Served[EngineThread]
Tensors = Served[SessionThread]


def served(
    name: str,
    manifest: Manifest,
    load: Callable[[], Model | Session],
    most: int,
    changed: Callable[[Any], None] | None = None,
) -> Decoder | Tensors:
    """A model to serve, with the kind of thread it needs; see :class:`ModelThread` for the arguments."""
    if manifest.kind == "decoder":
        return Served(name, manifest, EngineThread(load, most, changed))  # type: ignore[arg-type]
    return Served(name, manifest, SessionThread(load, most, changed))  # type: ignore[arg-type]


class Registry:
    """All models of a server.

    Args:
        models: In the order they are listed.

    Raises:
        UsageError: There are none, two have one name, or a name has characters that cannot be shown.
    """

    def __init__(self, models: Sequence[Decoder | Tensors]) -> None:
        if not models:
            raise UsageError("there is no model to serve.", "Name at least one artifact.")
        for name, count in Counter(model.name for model in models).items():
            if not name or not name.isprintable():
                raise UsageError(f"{name!r} is no name of a model.", "Use characters that can be shown.")
            if count > 1:
                raise UsageError(f"{count} of the models are called {name}.", "Give each its own name: NAME=ARTIFACT.")
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Decoder | Tensors]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def find(self, name: str) -> Decoder | Tensors:
        """The model of a name.

        Raises:
            ApiError: There is none.
        """
        if name not in self._models:
            names = ", ".join(f"'{known}'" for known in self._models)
            message = f"The model '{name[:200]}' does not exist. This server has {names}."
            raise ApiError(404, message, "model_not_found", "model")
        return self._models[name]

    def decoder(self, name: str) -> Decoder:
        """The language model of a name.

        Raises:
            ApiError: There is none, or it is a model of tensors.
        """
        model = self.find(name)
        if isinstance(model.thread, EngineThread):
            return model
        message = f"The model '{name}' maps tensors to tensors and generates no text. Ask it for embeddings."
        raise ApiError(400, message, "model_not_supported", "model")

    def tensors(self, name: str) -> Tensors:
        """The model of tensors of a name.

        Raises:
            ApiError: There is none, or it is a language model.
        """
        model = self.find(name)
        if isinstance(model.thread, SessionThread):
            return model
        raise ApiError(400, f"The model '{name}' generates text and is not an encoder.", "model_not_supported", "model")
