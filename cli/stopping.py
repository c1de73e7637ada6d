"""Ends a command that a signal cannot end, because native code has not come back from a call."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_GRACE_SECONDS = 1.5


@contextmanager
def stoppable(clean_up: Callable[[], None]) -> Iterator[None]:
    """End the process soon after SIGTERM or Ctrl-C, whatever the main thread is doing.

    Python's own handlers run between two steps of Python, so not before a vendor's compiler
    returns. They come first here; what has not ended by them is ended by another thread.

    Args:
        clean_up: Called before the process is ended so; removes what a ``finally`` would have.
    """
    left, (heard, told) = threading.Event(), os.pipe()
    os.set_blocking(told, False)

    def watch() -> None:
        while number := int.from_bytes(os.read(heard, 1)):
            if number in (signal.SIGTERM, signal.SIGINT) and not left.wait(_GRACE_SECONDS):
                clean_up()
                os._exit(128 + number)
        os.close(heard)

    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(told)
