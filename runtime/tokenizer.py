"""Text to token ids and back: the ``tokenizers`` file format, one file from any model.

Special tokens in text. :meth:`Tokenizer.encode` recognises them (``<|im_end|>`` becomes its one
id), as the field does for prompts that are passed raw. Chat messages are different: their text is
data, so :meth:`Tokenizer.encode_parts` can mark parts of a text as literal, whose special tokens
are spelled out in ordinary ones; :mod:`aicc.runtime.chat` uses it, and nobody can end their turn
and begin another from inside a message. Without such text both give the same ids. Every method may
be called from any thread.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicc.runtime.errors import AiccError, IntegrityError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"  # what bytes that are not (yet) UTF-8 decode to
_CONTEXT_TOKENS = 6  # of a prompt, enough for its last characters
_LONGEST_WAIT = 32  # tokens without one complete character; real text needs at most a few
_LONG_TEXT = 16384  # characters, some milliseconds of work
_LONGEST_GROWTH = 4096  # times a text may grow on its way through a step; published tokenizers stay under ten


class Tokenizer:
    """A model's tokenizer.

    Args:
        path: A ``tokenizer.json``.
        bos_token_id: Put in front of prompts when ``add_bos`` is set and the file's own
            post-processor does not do it.
        add_bos: Whether the model expects that token.

    Raises:
        IntegrityError: The file is not a tokenizer, or one that makes a short text endless.
    """

    def __init__(self, path: str | os.PathLike[str], bos_token_id: int | None = None, add_bos: bool = False) -> None:
        from tokenizers import Tokenizer as Backend

        refused = IntegrityError(f"{Path(path)} is not a tokenizer", "Compile the model again from a complete source.")
        with _refusing(refused):
            self._backend: tokenizers.Tokenizer = Backend.from_file(os.fspath(path))
        for name in ("normalizer", "decoder"):
            step = getattr(self._backend, name)
            if step is not None and _growth(json.loads(step.__getstate__())) > _LONGEST_GROWTH:
                raise IntegrityError(
                    f"the {name} of {Path(path)} makes a text more than {_LONGEST_GROWTH} times longer, which no "
                    "text would survive.",
                    "Compile the model again from a source you trust.",
                )
        # A file may ask for both; a prompt cut short or padded is never what was asked.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos = bos_token_id if add_bos else None
        added = self._backend.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        # The same model, normaliser and pre-tokeniser without added tokens: it takes no memory of its
        # own, and, unlike the backend's switch for this, changes nothing for other threads.
        self._literal = Backend(self._backend.model)
        self._literal.normalizer = self._backend.normalizer
        self._literal.pre_tokenizer = self._backend.pre_tokenizer

    @property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that mean structure, not text, and their ids."""
        return dict(self._special)

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return int(self._backend.get_vocab_size())

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens in it are recognised.

        Args:
            text: Any text.
            add_special_tokens: Add what the model expects around a text, such as a
                beginning-of-sequence token. Chat templates write it themselves.

        Raises:
            UsageError: The text is not Unicode (it has lone surrogates).
        """
        ids = _ids(self._backend, text, add_special_tokens)
        if add_special_tokens and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Token ids of a text given in parts ``(text, literal)``, nothing added around it.

        Special tokens inside literal parts are encoded as the characters they consist of.
        """
        ids: list[int] = []
        for text, literal in parts:
            ids += _ids(self._literal if literal else self._backend, text, False)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; ids the tokenizer does not know have none."""
        with _refusing(UnsupportedError("the model's tokenizer cannot decode its tokens", "Compile the model again.")):
            return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def stream(self, prompt: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for tokens that come one by one after a prompt."""
        return StreamDecoder(self, prompt)


def _ids(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text is not valid Unicode: {error.reason} at character {error.start}.", "Send it as UTF-8."
        ) from error
    refused = UnsupportedError("the model's tokenizer cannot encode the text", "Give it another text, or token ids.")
    with _refusing(refused):
        if len(text) < _LONG_TEXT:
            return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
        # The one call of the library that lets other threads go on meanwhile.
        return list(backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids)


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a normaliser or decoder may make a text, at most, by replacing.

    A few lines of replacements that each double what they find fill any memory, inside a library that
    nothing can interrupt.
    """
    inner = (_growth(each) for steps in step.values() if isinstance(steps, list) for each in steps if "type" in each)
    if step["type"] != "Replace":
        return math.prod(inner)
    found = step["pattern"].get("String", "")  # a regular expression may match nothing, before every character
    content = len(step["content"])
    return max(1.0, content / len(found) if found else content + 1)


@contextmanager
def _refusing(refusal: AiccError) -> Iterator[None]:
    """Turn whatever the library raises into a refusal that says why.

    It raises plain Exception for what it foresees, and what it does not arrives as a panic, which
    is no Exception and has no type that could be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise type(refusal)(f"{refusal.message} ({error}).", refusal.remedy) from error


class StreamDecoder:
    """Turns tokens into text as they come, and never takes back what it gave.

    Tokens are decoded in a window that starts a little before the first token whose text is not
    out yet, because a token's text depends on its neighbours: a character may be spread over
    several tokens, and decoders in SentencePiece style drop the space in front of the first. The
    window moves on whenever its text ends in a complete character, so the work for a token does
    not grow with the length of the text.

    Args:
        tokenizer: Whose tokens they are.
        prompt: Ids the new tokens come after; a leading space is kept if a prompt is in front.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # The longest context that does not end inside a character, as seen from where it begins.
        contexts = (list(prompt[len(prompt) - n :]) for n in range(min(_CONTEXT_TOKENS, len(prompt)), 0, -1))
        whole = (ids for ids in contexts if not self._decode(ids).endswith(_REPLACEMENT))
        self._window = next(whole, [])
        self._boundary = len(self._window)  # tokens of the window whose text is out
        self._given = len(self._decode(self._window))  # characters of the window that are out

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now, which may be empty."""
        self._window.append(token)
        text = self._decode(self._window)
        certain = text.rstrip(_REPLACEMENT)
        if len(certain) < len(text) and len(self._window) - self._boundary < _LONGEST_WAIT:
            return self._give(certain)
        piece = self._give(text)
        # What was new is the context of what comes next, unless it has no text to be one.
        context = self._window[self._boundary :]
        visible = len(self._decode(context))
        if visible or len(self._window) >= _LONGEST_WAIT:
            self._window, self._given = context, visible
        self._boundary = len(self._window)
        return piece

    def finish(self) -> str:
        """The rest of the text; incomplete characters as U+FFFD."""
        return self._give(self._decode(self._window))

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
