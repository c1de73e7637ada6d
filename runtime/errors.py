"""The errors a person can act on, and the exit code of each.

Every failure aicc foresees is an :class:`AiccError`: its message says what is wrong, in which
file, node or field, and what to do. The command line prints it on one line and leaves with
``exit_code``; the server turns it into an API error. Anything else that escapes is a bug.
"""

from __future__ import annotations

import errno
from typing import TypeGuard


class AiccError(Exception):
    """A foreseen failure.

    Args:
        message: What is wrong and where (file, node, field).
        remedy: What the reader can do about it, as an imperative sentence; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".strip())


class UsageError(AiccError):
    """The request itself makes no sense: a flag, a field, a value (exit code 2)."""

    exit_code = 2


class UnsupportedError(AiccError):
    """A model, operator or number format that cannot be handled (exit code 3)."""

    exit_code = 3


class MismatchError(AiccError):
    """An artifact, a target and this machine do not fit together (exit code 4)."""

    exit_code = 4


class ResourceError(AiccError):
    """Not enough memory or disk (exit code 5)."""

    exit_code = 5


class QualityError(AiccError):
    """The compiled model lost more quality than allowed (exit code 6)."""

    exit_code = 6


class IntegrityError(AiccError):
    """A file is not what it claims to be: truncated, changed, inconsistent (exit code 7)."""

    exit_code = 7


class ContextLengthError(UsageError):
    """A prompt (plus what is asked for) does not fit the model's context.

    Args:
        prompt_tokens: Tokens in the prompt.
        context_length: Tokens the model can hold.
    """

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the model's context holds {context_length}.",
            "Shorten the prompt; nothing is truncated silently.",
        )


def first_line(error: Exception) -> str:
    """The first line of what an error of another library says, without its full stop, or what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def is_disk_full(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether the system refused to write more: the disk, a quota or the process's file size limit is exhausted."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
