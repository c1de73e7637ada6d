"""An engine over a small decoder that checks every batch, for the engine's tests."""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from aicc.runtime.engine import Engine
from aicc.runtime.options import EngineOptions
from aicc.runtime.provider import TokenBatch
from aicc.runtime.request import Piece, Request
from aicc.runtime.sampling import SamplingParams

VOCAB, EOS = 300, 2

# Often with a beginning in common.
_prompts = st.lists(st.sampled_from([[7], [8, 9, 10], list(range(20)), list(range(20, 29))]), min_size=1, max_size=4)
requests = st.lists(
    st.tuples(
        _prompts.map(lambda parts: [token for part in parts for token in part][:40])
        | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.8]),
        st.integers(0, 20),  # the step it arrives at
    ),
    min_size=1,
    max_size=6,
)


class Watched:
    """A decoder that checks each batch it gets against the contract, and can be made to fail.

    It remembers which tokens each slot of each page was computed after, so that a sequence which reads
    pages of others, or of the past, is known to read its own beginning.
    """

    def __init__(self, decoder):
        self.decoder = decoder
        self.page_size, self.page_count = decoder.page_size, decoder.page_count
        self.max_batch_tokens, self.prompts_apart = decoder.max_batch_tokens, decoder.prompts_apart
        self.roles: list[list[bool]] = []  # whether each sequence added tokens of its prompt
        self.steps: list[list[tuple[int, int]]] = []  # (past, new) of each sequence
        self.before_step: Callable[[int], None] = lambda index: None
        self.slots: dict[tuple[int, int], tuple] = {}  # (page, slot) -> (what came before, token)

    def forward(self, batch: TokenBatch) -> np.ndarray:
        new = np.diff(batch.starts)
        assert 0 < len(batch.tokens) == new.sum() <= self.max_batch_tokens
        assert (new > 0).all()
        assert ((batch.pages >= 0) & (batch.pages < self.page_count)).all()
        assert (np.diff(batch.page_starts) * self.page_size >= batch.past + new).all()
        assert (np.diff(batch.logit_rows) > 0).all()
        assert set(batch.logit_rows.tolist()) <= set(range(len(batch.tokens)))
        self.steps.append(list(zip(batch.past.tolist(), new.tolist(), strict=True)))
        self.roles.append([i >= batch.first_prompt for i in range(len(new))])
        self.before_step(len(self.steps) - 1)
        self._check_pages(batch)
        return self.decoder.forward(batch)

    def fail_once(self, error: BaseException) -> None:
        """Raise an error instead of the next step."""

        def before_step(index: int) -> None:
            self.before_step = lambda index: None
            raise error

        self.before_step = before_step

    def _check_pages(self, batch: TokenBatch) -> None:
        """Each sequence reads what it would have written, and writes where nobody else reads or writes."""
        written: list[int] = []
        for i, past in enumerate(batch.past.tolist()):
            pages = batch.pages[batch.page_starts[i] : batch.page_starts[i + 1]].tolist()
            assert len(set(pages)) == len(pages)
            written += pages[past // self.page_size :]
            before: tuple = ()
            for place in range(past):
                slot = self.slots[pages[place // self.page_size], place % self.page_size]
                assert slot[0] == hash(before)
                before = slot
            for place, token in enumerate(batch.tokens[batch.starts[i] : batch.starts[i + 1]].tolist(), past):
                before = (hash(before), token)
                self.slots[pages[place // self.page_size], place % self.page_size] = before
        assert not [page for page in written if batch.pages.tolist().count(page) > 1]


class Run:
    """An engine with its requests and what came of them."""

    def __init__(self, decoder, drafter=None, watch=Watched, **options):
        self.executable = watch(decoder)
        self.engine = Engine(self.executable, EngineOptions(**options), drafter)
        self.pieces: dict[Request, list[Piece]] = {}

    def submit(self, prompt: list[int], **params) -> Request:
        pieces: list[Piece] = []
        request = Request(
            np.array(prompt, np.int64),
            SamplingParams(**{"ignore_eos": True, "max_tokens": 10, **params}),
            vocab_size=VOCAB,
            capacity=self.engine.capacity,
            page_size=self.executable.page_size,
            eos_token_ids=(EOS,),
            tokenizer=None,
            emit=pieces.append,
        )
        self.pieces[request] = pieces
        self.engine.submit(request)
        return request

    def finish(self) -> "Run":
        while self.engine.step():
            pass
        assert self.engine.free_pages == self.engine.page_count
        assert all(request.finish_reason for request in self.pieces)
        return self

    def ids(self, request: Request) -> list[int]:
        emitted = [token for piece in self.pieces[request] for token in piece.token_ids]
        assert emitted == request.completion_ids
        return emitted
