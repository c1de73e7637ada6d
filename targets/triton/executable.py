"""A plan on a GPU: its memory and kernels, and a decoder's steps, each one submission."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import c_int, c_size_t, c_ubyte, c_void_p

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import Signature
from aicc.runtime.errors import AiccError, IntegrityError, UsageError
from aicc.runtime.provider import DecoderExecutable, TokenBatch
from aicc.targets.triton.driver import Driver
from aicc.targets.triton.plan import BATCH, CHOSEN, FIELDS, LOGITS, PAGES, TILES, VERSION, WEIGHTS, Launch, Plan, tier
from aicc.targets.triton.steps import StepArrays, step_arrays

_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)  # tokens of the steps that are kept as graphs
_AT_ONCE = 1 << 26  # bytes of weights that are copied together
_SIZES = ("tokens", "wanted", "tiles", "pages")
# Bounds of what a plan may ask for, so that no number in it is another one in C.
_MOST_BYTES = 1 << 46
_MOST_PROGRAMS = 1 << 31
_MOST_THREADS, _MOST_SHARED = 1024, 1 << 20  # of a program


class OpenPlan:
    """A plan's memory, kernels and queue on a GPU.

    Args:
        driver: Of the GPU.
        plan: Is checked here: nothing in a file is trusted.
        binary: Reads a kernel's file.
        weights: The artifact's weights file.
        pages: Of keys and values.

    Raises:
        IntegrityError: The plan names what is not there.
        MismatchError: The GPU does not take a kernel.
        ResourceError: There is not enough memory, or the GPU fails.
    """

    def __init__(
        self, driver: Driver, plan: Plan, binary: Callable[[str], bytes], weights: memoryview, pages: int
    ) -> None:
        check(plan, len(weights), pages)
        self._driver, self._plan = driver, plan
        self.sizes = {name: c_int() for name in _SIZES}
        self.sizes["pages"].value = pages
        self._memory: list[int] = []
        self._modules: list[c_void_p] = []
        self._graphs: dict[tuple[int, int], c_void_p] = {}
        self._host = 0
        self._stream: c_void_p | None = None
        driver.activate()
        try:
            self._open(binary, weights)
        except BaseException:
            self.close()
            raise

    def _open(self, binary: Callable[[str], bytes], weights: memoryview) -> None:
        driver, plan = self._driver, self._plan
        self._stream = driver.stream()
        self._functions = []
        for kernel in plan.kernels:
            module, function = driver.load(binary(kernel.file), kernel.symbol, kernel.shared)
            self._modules.append(module)
            self._functions.append(function)
        sizes = {name: cell.value for name, cell in self.sizes.items()}
        for buffer in plan.buffers:
            size = max(16, buffer.bytes.value(sizes))
            self._memory.append(driver.allocate(size))
            driver.call("Clear", c_void_p(self._memory[-1]), c_ubyte(0), c_size_t(size), self._stream)
        for begin in range(0, plan.weights_bytes, _AT_ONCE):
            piece = np.frombuffer(weights[begin : min(plan.weights_bytes, begin + _AT_ONCE)], np.uint8)
            self._copy_in(WEIGHTS, piece.ctypes.data, piece.nbytes, begin)
            self.wait()
        self._arguments = {
            id(launch): self._argument_list(launch)
            for launch in plan.launches()
        }  # fmt: skip
        self._make_host_memory()

    def _make_host_memory(self) -> None:
        """What steps are written into and logits come back to, where the GPU copies by itself."""
        shapes = _host_shapes(self._plan)
        sizes = {buffer: 4 * rows * columns for buffer, (rows, columns) in shapes.items()}
        self._host = self._driver.allocate_host(sum(sizes.values()))
        self.host: dict[int, NDArray[np.int32]] = {}
        at = self._host
        for buffer, shape in shapes.items():
            words = (c_int * (sizes[buffer] // 4)).from_address(at)
            self.host[buffer] = np.frombuffer(words, np.int32).reshape(shape)
            at += sizes[buffer]

    def _argument_list(self, launch: Launch) -> ctypes.Array[c_void_p]:
        """Addresses of arguments; sizes are read when the kernel is launched."""
        cells: list[c_int | c_void_p] = [
            self.sizes[a.size] if a.size else c_void_p(self._memory[a.buffer] + a.offset) for a in launch.arguments
        ]
        cells += [c_void_p(), c_void_p()]  # scratch memory, which none of our kernels asks for
        made = (c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        made.cells = cells  # type: ignore[attr-defined]  # keeps them alive
        return made

    def _copy_in(self, buffer: int, source: int, size: int, offset: int = 0) -> None:
        if size:
            to = c_void_p(self._memory[buffer] + offset)
            self._driver.call("CopyIn", to, c_void_p(source), c_size_t(size), self._stream)

    def copy_rows_in(self, buffer: int, rows: int) -> None:
        """The first rows of an array of :attr:`host`."""
        array = self.host[buffer]
        self._copy_in(buffer, array.ctypes.data, rows * array.shape[1] * 4)

    def copy_rows_out(self, buffer: int, rows: int) -> None:
        """The first rows of a buffer into its array of :attr:`host`."""
        array = self.host[buffer]
        size = c_size_t(rows * array.shape[1] * 4)
        self._driver.call("CopyOut", c_void_p(array.ctypes.data), c_void_p(self._memory[buffer]), size, self._stream)

    def launch(self, launches: tuple[Launch, ...]) -> None:
        """Put launches into the queue, with :attr:`sizes` as they are."""
        sizes = {name: cell.value for name, cell in self.sizes.items()}
        for step in launches:
            kernel = self._plan.kernels[step.kernel]
            grid = [extent.value(sizes) for extent in step.grid]
            arguments = self._arguments[id(step)]
            self._driver.launch(
                self._functions[step.kernel], grid, kernel.threads, kernel.shared, self._stream, arguments
            )

    def run_graph(self, rows: int, result: int, note: Callable[[], None]) -> None:
        """Run what ``note`` puts into the queue for so many rows and a result; it is called the first time only."""
        if (rows, result) not in self._graphs:
            self._driver.begin_graph(self._stream)
            try:
                note()
            finally:
                graph = self._driver.end_graph(self._stream)
            self._graphs[rows, result] = graph
        self._driver.call("GraphLaunch", self._graphs[rows, result], self._stream)

    def wait(self) -> None:
        """Until the queue is empty."""
        self._driver.call("StreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back, whatever state the GPU is in. Idempotent."""
        todo: list[tuple[str, object]] = [("GraphExecDestroy", graph) for graph in self._graphs.values()]
        todo += [("ModuleUnload", module) for module in self._modules]
        todo += [("Free", c_void_p(address)) for address in self._memory]
        todo += [("FreeHost", c_void_p(self._host))] if self._host else []
        todo += [("StreamDestroy", self._stream)] if self._stream else []
        self._graphs, self._modules, self._memory, self._host, self._stream = {}, [], [], 0, None
        for name, what in todo:
            try:
                self._driver.call(name, what)
            except AiccError:
                continue  # a lost GPU gives nothing back, and has nothing any more


class TritonDecoder(DecoderExecutable):
    """A decoder over paged KV memory; see :class:`aicc.runtime.provider.DecoderExecutable`.

    A step that fails closes everything on the GPU. The next opens it again, with pages that hold nothing, so a
    server goes on as soon as the GPU does.
    """

    def __init__(
        self,
        open_plan: Callable[[], OpenPlan],
        driver: Driver,
        plan: Plan,
        pages: int,
        signatures: Mapping[str, Signature],
    ) -> None:
        self._open_plan, self._driver, self._plan, self._pages = open_plan, driver, plan, pages
        self._signatures = signatures
        self._opened: OpenPlan | None = open_plan()
        self._closed = False

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The manifest's."""
        return self._signatures

    @property
    def device(self) -> str:
        """The GPU and its architecture."""
        return f"GPU: {self._driver.name} ({self._driver.architecture})"

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self._plan.page_tokens

    @property
    def page_count(self) -> int:
        """Pages there are."""
        return self._pages

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return self._plan.max_tokens

    def close(self) -> None:
        """Give the GPU's memory back. Idempotent."""
        opened, self._opened, self._closed = self._opened, None, True
        if opened is not None:
            self._driver.activate()
            opened.close()
            self._driver.release()

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step; see :class:`aicc.runtime.provider.DecoderExecutable`.

        Raises:
            UsageError: The batch contradicts itself, or the model was closed.
            ResourceError: The GPU fails.
        """
        return self._result(batch, LOGITS).view(np.float32)

    def forward_best(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One step and its likeliest tokens; see :class:`aicc.runtime.provider.ChoosingDecoder`.

        Raises:
            UsageError: As :meth:`forward`.
            ResourceError: As :meth:`forward`.
        """
        chosen = self._result(batch, CHOSEN)
        return chosen[:, 0].astype(np.int64), chosen[:, 1].copy().view(np.float32)

    def _result(self, batch: TokenBatch, result: int) -> NDArray[np.int32]:
        """Rows of a buffer, those of the tokens whose logits are wanted."""
        if self._closed:
            raise UsageError("the model was closed.", "Load it again.")
        if len(batch.pages) and not (batch.pages.min() >= 0 and batch.pages.max() < self._pages):
            raise UsageError("the batch contradicts itself: it names a page that is not there.")
        arrays = step_arrays(self._plan, batch)
        self._driver.activate()
        if self._opened is None:
            self._opened = self._open_plan()
        try:
            return self._step(self._opened, arrays, batch.logit_rows, result)
        except AiccError:
            opened, self._opened = self._opened, None
            opened.close()
            self._driver.reset()
            raise

    def _step(self, gpu: OpenPlan, arrays: StepArrays, wanted: NDArray[np.int32], result: int) -> NDArray[np.int32]:
        tokens, sequences = len(arrays.batch), len(arrays.pages)
        gpu.host[BATCH][:tokens] = arrays.batch
        gpu.host[PAGES][:sequences] = arrays.pages
        rows = max(tokens, sequences, len(wanted))
        if rows <= self._plan.decode:
            bucket = min(next((b for b in _BUCKETS if rows <= b), self._plan.decode), self._plan.decode)
            gpu.host[BATCH][tokens:bucket] = (0, -1, 0, 0)
            gpu.run_graph(bucket, result, lambda: self._decode(gpu, bucket, result))
            gpu.wait()
            return gpu.host[result][: len(wanted)]
        gpu.host[TILES][: len(arrays.tiles)] = arrays.tiles
        gpu.sizes["tokens"].value, gpu.sizes["tiles"].value = tokens, len(arrays.tiles)
        for buffer, count in ((BATCH, tokens), (PAGES, sequences), (TILES, len(arrays.tiles))):
            gpu.copy_rows_in(buffer, count)
        gpu.launch(tier(self._plan.body, tokens).launches)
        found = np.empty((len(wanted), gpu.host[result].shape[1]), np.int32)
        most = self._plan.head[-1].most
        for begin in range(0, len(wanted), most):
            chosen = wanted[begin : begin + most]
            gpu.wait()  # for what is copied from the host's memory that is written to now
            gpu.host[BATCH][: len(chosen), 3] = chosen
            gpu.sizes["wanted"].value = len(chosen)
            gpu.copy_rows_in(BATCH, len(chosen))
            self._head(gpu, len(chosen), result)
            gpu.wait()
            found[begin : begin + most] = gpu.host[result][: len(chosen)]
        gpu.wait()
        return found

    def _head(self, gpu: OpenPlan, rows: int, result: int) -> None:
        """What makes a result of the wanted rows, and brings it back."""
        gpu.launch(tier(self._plan.head, rows).launches)
        if result == CHOSEN:
            gpu.launch(self._plan.choice)
        gpu.copy_rows_out(result, rows)

    def _decode(self, gpu: OpenPlan, rows: int, result: int) -> None:
        """A step whose queries are taken one by one, as it is noted for a graph."""
        gpu.sizes["tokens"].value = gpu.sizes["wanted"].value = rows
        gpu.copy_rows_in(BATCH, rows)
        gpu.copy_rows_in(PAGES, rows)
        gpu.launch(tier(self._plan.body, rows).launches)
        self._head(gpu, rows, result)


def _host_shapes(plan: Plan) -> dict[int, tuple[int, int]]:
    """Rows and columns, of 4 bytes each, of the buffers that are copied to or from the host in a step."""
    return {
        BATCH: (plan.max_tokens, FIELDS), PAGES: (plan.sequences, plan.table),
        TILES: (plan.max_tokens // plan.tile + plan.sequences, 2), LOGITS: (plan.head[-1].most, plan.vocab),
        CHOSEN: (plan.head[-1].most, 2),
    }  # fmt: skip


def check(plan: Plan, weights: int, pages: int) -> None:
    """Refuse a plan whose numbers do not fit together.

    Raises:
        IntegrityError: It says what does not.
    """
    problem = _problem(plan, weights) or _launch_problem(plan, pages)
    if problem:
        raise IntegrityError(f"the launch plan cannot be used: {problem}.", "Compile the model again.")


def _problem(plan: Plan, weights: int) -> str:
    """What is wrong with a plan's own numbers and the buffers that are copied to and from; empty if nothing."""
    if plan.version != VERSION:
        return f"its version is {plan.version} and this aicc reads {VERSION}"
    if plan.weights_bytes > weights:
        return "the weights file is shorter than it says"
    if len(plan.buffers) <= CHOSEN or not plan.body or not plan.head:
        return "parts of it are missing"
    tiers = [[each.most for each in part] for part in (plan.body, plan.head)]
    if any(most != sorted(most) for most in tiers) or plan.decode > min(tiers[0][-1], tiers[1][-1], plan.sequences):
        return "its tiers are not those of its steps"
    needed = {buffer: 4 * rows * columns for buffer, (rows, columns) in _host_shapes(plan).items()}
    for number, size in {WEIGHTS: plan.weights_bytes, **needed}.items():
        if plan.buffers[number].bytes.of or plan.buffers[number].bytes.times < size:
            return f"the buffer {plan.buffers[number].name} is smaller than what is copied to or from it"
    return ""


def _launch_problem(plan: Plan, pages: int) -> str:
    """What is wrong with a plan's kernels, launches, and the memory of these; empty if nothing."""
    most = {"tokens": plan.max_tokens, "wanted": plan.max_tokens, "pages": pages, "tiles": _host_shapes(plan)[TILES][0]}
    if any(buffer.bytes.of not in ("", "pages") for buffer in plan.buffers):
        return "a buffer grows with a size that is not there"
    sizes = [buffer.bytes.value(most) for buffer in plan.buffers]
    if sum(sizes) > _MOST_BYTES or any(k.threads > _MOST_THREADS or k.shared > _MOST_SHARED for k in plan.kernels):
        return "it asks for more than any GPU has"
    for launch in plan.launches():
        extents = [extent.of for extent in launch.grid if extent.of] + [a.size for a in launch.arguments if a.size]
        if launch.kernel >= len(plan.kernels) or not set(extents) <= set(_SIZES):
            return f"{launch.node} names a kernel or a size that is not there"
        if not all(0 < extent.value(most) < _MOST_PROGRAMS for extent in launch.grid):
            return f"{launch.node} runs no programs, or too many"
        for argument in launch.arguments:
            if not argument.size and not 0 <= argument.buffer < len(plan.buffers):
                return f"{launch.node} names a buffer that is not there"
            if not argument.size and argument.offset >= max(16, sizes[argument.buffer]):
                return f"{launch.node} begins after the end of a buffer"
    return ""
