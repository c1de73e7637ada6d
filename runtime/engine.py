"""The engine: schedule → run → postprocess, one for every chip, many requests at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.batch import Batches
from aicc.runtime.drafting import Drafter, PromptLookups
from aicc.runtime.errors import UsageError
from aicc.runtime.kv import PageAllocator, PageTable
from aicc.runtime.options import DEFAULT_OPTIONS, Counters, EngineOptions
from aicc.runtime.provider import ChoosingDecoder, DecoderExecutable, TokenBatch
from aicc.runtime.request import Request
from aicc.runtime.scheduler import Scheduler


class Engine:
    """Runs requests on one executable. Every method may be called from any thread.

    Whoever wants a request to go on calls :meth:`step`; steps of several callers take turns, and
    each of them serves all requests.

    Args:
        executable: A loaded decoder.
        options: How it goes about it; none changes what a request gets.
        drafter: Guesses tokens, with speculation; None looks them up in the text itself.

    Attributes:
        failures: Steps in a row that the executable failed in, or gave no logits that are numbers.
    """

    def __init__(
        self,
        executable: DecoderExecutable,
        options: EngineOptions = DEFAULT_OPTIONS,
        drafter: Drafter | None = None,
    ) -> None:
        self._executable = executable
        self._choosing = executable if isinstance(executable, ChoosingDecoder) else None
        if drafter is None and options.speculation is not None:
            drafter = PromptLookups(options.speculation)
        size, budget = executable.page_size, executable.max_batch_tokens
        allocator = PageAllocator(executable.page_count, size, executable.prompts_apart)
        self._scheduler = Scheduler(allocator, budget, options, drafter)
        self._inbox: deque[Request] = deque()
        self._cancelling = False
        self.failures = 0
        self._lock = threading.Lock()
        self._batches = Batches(executable.page_count, size, self._scheduler.most_sequences, budget)

    @property
    def capacity(self) -> int:
        """Most tokens one sequence may have."""
        return self._executable.page_count * self._executable.page_size

    @property
    def page_count(self) -> int:
        """Pages of KV memory there are."""
        return self._executable.page_count

    @property
    def free_pages(self) -> int:
        """Pages of KV memory nobody owned after the last step."""
        return self._scheduler.allocator.free

    @property
    def counters(self) -> Counters:
        """What it has done so far; read, do not write."""
        return self._scheduler.counters

    def submit(self, request: Request) -> None:
        """Queue a request; its pieces come while somebody steps."""
        self._inbox.append(request)

    def cancel(self, request: Request) -> None:
        """Ask for a request to end; it does at the next step, or :meth:`settle`."""
        request.cancelled = self._cancelling = True

    def settle(self) -> None:
        """Take in what was submitted and let go of what was cancelled, without computing.

        Does nothing while a step runs: the next one does the same. It must not wait for it, because
        a forgotten stream may be closed by the garbage collector in the middle of a step.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._hand_over()
            finally:
                self._lock.release()

    def step(self) -> int:
        """Run one step; how many sequences it ran, 0 if there was nothing to run.

        A failure of the executable ends the requests of the step. An interruption (Ctrl-C) leaves
        every request as it was, to be computed again.
        """
        with self._lock:
            started = time.perf_counter()
            try:
                self._hand_over()
                scheduled = self._scheduler.schedule()
                if scheduled:
                    self._run(scheduled, started)
                return len(scheduled)
            except BaseException:
                self._scheduler.reset()
                raise

    def _hand_over(self) -> None:
        # First, so that whoever submits and cancels from here on is heard the next time.
        cancelling, self._cancelling = self._cancelling, False
        while self._inbox:
            self._scheduler.add(self._inbox.popleft())
        if cancelling:
            for request in [r for r in (*self._scheduler.running, *self._scheduler.waiting) if r.cancelled]:
                self._scheduler.remove(request)
                request.end("cancelled")

    def _run(self, scheduled: list[tuple[Request, int]], started: float) -> None:
        try:
            scheduled = self._scheduler.draft(scheduled)
            first_prompt = sum(not request.in_prompt for request, _ in scheduled)
            batch = self._batches.pack([_part(request, new) for request, new in scheduled], first_prompt)
            logits, best = self._forward(batch, all(request.takes_best for request, _ in scheduled))
        except Exception as error:
            self.failures += 1
            requests = [request for request, _ in scheduled]
            self._scheduler.failed(requests)
            for request in requests:
                request.end("error", error)
            return
        row, failed = 0, False
        for request, new in scheduled:
            past, end, length = request.cached, request.cached + new, request.length
            rows = end - request.logits_from(past, end)
            try:
                request.accept(logits[row : row + rows], best[row : row + rows], started)
            except Exception as error:
                if not isinstance(error, UsageError):  # logits may be bad because keys and values are
                    failed = True
                    self._scheduler.allocator.forget()
                request.end("error", error)
            row += rows
            if request.finish_reason != "error":
                self._scheduler.computed(request, end, length)
            if request.finish_reason is not None:
                self._scheduler.remove(request)
        self.failures = self.failures + 1 if failed else 0

    def _forward(self, batch: TokenBatch, best_only: bool) -> tuple[NDArray[np.float32], list[tuple[int, float]]]:
        """Logits, ``[L, 0]`` if the device chooses; and of each row the first of the largest, and that logit."""
        if best_only and self._choosing is not None:
            tokens, highest = self._choosing.forward_best(batch)
            logits = np.empty((len(tokens), 0), np.float32)
        else:
            logits = self._executable.forward(batch)
            tokens = logits.argmax(axis=1)
            highest = logits[np.arange(len(tokens)), tokens]
        return logits, list(zip(tokens.tolist(), highest.tolist(), strict=True))

    def teacher_forced(
        self, tokens: NDArray[np.int64], rows: int, generated: bool, consume: Callable[[NDArray[np.float32]], object]
    ) -> None:
        """Logits of every token of a text, chunk by chunk, each passed to ``consume``.

        Requests that are running wait, and are computed again afterwards.

        Args:
            tokens: int64 ``[n]``, ``n <= capacity``.
            rows: Most rows of logits at once.
            generated: Whether they are computed as generated tokens are, not as those of a prompt.
            consume: Gets float32 ``[chunk, vocab]``, reused by the next chunk.
        """
        with self._lock:
            self._scheduler.reset()
            table = PageTable(self._executable.page_count)
            self._scheduler.allocator.grow(table, len(tokens))
            try:
                chunk = min(rows, self._scheduler.budget)
                for past in range(0, len(tokens), chunk):
                    new = tokens[past : past + chunk]
                    consume(
                        self._executable.forward(
                            TokenBatch(
                                tokens=new,
                                starts=np.array([0, len(new)], np.int32),
                                past=np.array([past], np.int32),
                                pages=table.pages,
                                page_starts=np.array([0, len(table)], np.int32),
                                logit_rows=np.arange(len(new), dtype=np.int32),
                                first_prompt=int(generated),
                            )
                        )
                    )
            finally:
                self._scheduler.reset()


def _part(request: Request, new: int) -> tuple[NDArray[np.int64], int, PageTable, int]:
    """What a request adds to a batch."""
    past, end = request.cached, request.cached + new
    return request.tokens[past:end], past, request.pages, end - request.logits_from(past, end)
