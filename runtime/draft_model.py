"""Drafts by a second, smaller model that has the same tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import TOKENIZER_PATH, Artifact
from aicc.runtime.batch import Batches
from aicc.runtime.errors import UsageError
from aicc.runtime.kv import PageAllocator, PageTable
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.request import Request
from aicc.runtime.speculation import RATE_CHANGE, SpeculationOptions
from aicc.runtime.tokenizer import Tokenizer

_RATE_AT_FIRST = 0.8
_RECOVERY = 0.01  # part of the way back to it with every step without drafts, which tell nothing


class DraftModel:
    """Drafts what a small model finds most likely, for several requests at a time.

    It reads what is new of a text and goes on from there, in pages of its own. These begin with what is known of
    earlier prompts, as the target's do. It reads no more in a step than one batch holds, the shortest first; who
    is not read to the end has no drafts yet. Who is too long for it, or finds no free page, has none.

    Args:
        executable: The small model, loaded.
        options: How many drafts to make, and what a token more costs the target.
        cost: What a step of the small model takes, as a part of one of the target's.
        context: Most tokens it may see.
        vocab_size: Token ids below it are of both models.
        prefix_cache: Keep keys and values of what is done.

    Attributes:
        allocator: Of its pages.
    """

    def __init__(
        self,
        executable: DecoderExecutable,
        options: SpeculationOptions,
        cost: float,
        context: int,
        vocab_size: int,
        prefix_cache: bool,
    ) -> None:
        self.allocator = PageAllocator(executable.page_count, executable.page_size, executable.prompts_apart)
        self._executable = executable
        self._options = options
        self._cost = cost
        self._context = context
        self._vocab_size = vocab_size
        self._prefix_cache = prefix_cache
        self._budget = executable.max_batch_tokens
        self._batches = Batches(executable.page_count, executable.page_size, self._budget, self._budget)
        self._texts: dict[Request, _Text] = {}

    def propose(self, room: Mapping[Request, int]) -> Mapping[Request, list[int]]:
        """See :class:`aicc.runtime.drafting.Drafter`."""
        wanted = {}
        for request, most in room.items():
            text = self._text(request)
            text.learn()
            count = min(most, self._options.worthwhile(text.rate, len(room), self._cost))
            if count > 0 and self._make_room(text, request.length + count - 1):
                wanted[text] = count
            else:
                text.rate += _RECOVERY * (_RATE_AT_FIRST - text.rate)
        self._read(list(wanted))
        while going := [text for text in wanted if 0 < len(text.drafts) < wanted[text]]:
            parts = [(np.array(t.drafts[-1:]), t.request.length + len(t.drafts) - 1, t.pages, 1) for t in going]
            self._draft(going, parts, len(parts))
        return {text.request: text.drafts for text in wanted}

    def release(self, request: Request) -> None:
        """See :class:`aicc.runtime.drafting.Drafter`."""
        if request in self._texts:
            self.allocator.release(self._texts.pop(request).pages)

    def reset(self) -> None:
        """See :class:`aicc.runtime.drafting.Drafter`."""
        self._texts.clear()
        self.allocator.reset()

    def _text(self, request: Request) -> _Text:
        if request not in self._texts:
            longest = min(request.limit, self._context)
            self._texts[request] = _Text(request, PageTable(self.allocator.pages_for(longest)))
        return self._texts[request]

    def _make_room(self, text: _Text, end: int) -> bool:
        """Pages for the first tokens of a text and its drafts; whether the model can have them."""
        request = text.request
        if end > self._context or int(request.tokens[text.cached : request.length].max()) >= self._vocab_size:
            return False
        if not text.pages and self._prefix_cache:
            keys = self.allocator.keys(text.keys, request.tokens, request.length - 1, request.prompt_length)
            self.allocator.share(text.pages, keys)
            text.cached = len(text.pages) * self.allocator.page_size
        if self.allocator.missing(text.pages, end) > self.allocator.free:
            return False
        self.allocator.grow(text.pages, end)
        return True

    def _read(self, texts: list[_Text]) -> None:
        """Compute what is new of texts, and the first drafts of those that are read to the end."""
        budget, parts, read, whole = self._budget, [], [], []
        generated = 0
        for text in sorted(texts, key=lambda t: (t.in_prompt, t.request.length - t.cached)):
            request, past = text.request, text.cached
            end = min(request.length, past + budget)
            if end > past:
                parts.append((request.tokens[past:end], past, text.pages, int(end == request.length)))
                read.append((text, end))
                budget -= end - past
                generated += not text.in_prompt
            if past < end == request.length:
                whole.append(text)
        if parts:
            self._draft(whole, parts, generated)
        for text, end in read:
            text.cached = end
            if self._prefix_cache:
                keys = self.allocator.keys(text.keys, text.request.tokens, end, text.request.prompt_length)
                self.allocator.publish(text.pages, keys[text.pages.published :])

    def _draft(
        self, texts: list[_Text], parts: list[tuple[NDArray[np.int64], int, PageTable, int]], first_prompt: int
    ) -> None:
        """Run a step; each row of logits is the next draft of one of the texts."""
        logits = self._executable.forward(self._batches.pack(parts, first_prompt))
        for text, token in zip(texts, logits[:, : self._vocab_size].argmax(axis=1).tolist(), strict=True):
            text.drafts.append(token)


class _Text:
    """What the small model has of a request."""

    def __init__(self, request: Request, pages: PageTable) -> None:
        self.request = request
        self.pages = pages
        self.keys: list[bytes] = []
        self.cached = 0  # tokens of the request whose keys and values are in the pages
        self.drafts: list[int] = []  # of the last step, from ``cached`` on
        self.rate = _RATE_AT_FIRST

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to be computed is one of the prompt's."""
        return self.cached < self.request.prompt_length

    def learn(self) -> None:
        """Compare the last drafts with what came instead; those that were right have been computed, but the last."""
        start, came = self.cached, self.request.tokens[self.cached : self.request.length].tolist()
        for draft, token in zip(self.drafts, came, strict=False):
            self.rate += RATE_CHANGE * ((draft == token) - self.rate)
            if draft != token:
                break
            self.cached += 1
        if self.drafts:  # there may have been no room for all of them in the target's step
            self.cached = min(self.cached, start + len(self.drafts) - 1, self.request.length - 1)
        self.drafts = []


def check_draft(artifact: Artifact, draft: Artifact) -> None:
    """See that one model may draft for another: ids mean the same tokens to both.

    Raises:
        UsageError: They do not, or one of them is no language model with a tokenizer.
    """
    for each in (artifact, draft):
        if each.manifest.kind != "decoder":
            raise UsageError(f"{each.path} is no language model.", "Only language models draft, for language models.")
        if not each.has(TOKENIZER_PATH):
            raise UsageError(
                f"{each.path} has no tokenizer, so nobody knows whether its tokens are those of the other model.",
                "Compile it from a source that has one.",
            )
    paths = [each.file(TOKENIZER_PATH) for each in (artifact, draft)]
    if paths[0].read_bytes() != paths[1].read_bytes():
        ours, theirs = (Tokenizer(path).vocabulary for path in paths)
        if ours != theirs:
            differing = len(ours.items() ^ theirs.items())
            raise UsageError(
                f"{draft.path} cannot draft for {artifact.path}: their tokenizers differ in {differing:,} entries.",
                "Take a smaller model of the same family, which has the same tokens.",
            )
