"""For families that run the portable graph of an artifact as it is, with any evaluator of ONNX graphs.

:func:`read_graph` gives the evaluator its model; :class:`GraphExecutable` and
:class:`GraphDecoder` turn "arrays in, arrays out" into what the runtime asks of a chip. The
decoder keeps its keys and values in pages like every other one, and hands the graph the past of
one sequence at a time: slow, simple, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aicc.runtime.artifact import GRAPH_PATH, WEIGHTS_PATH, Artifact, Signature
from aicc.runtime.errors import IntegrityError, ResourceError, UnsupportedError, UsageError, first_line
from aicc.runtime.provider import Array, DecoderExecutable, TokenBatch

if TYPE_CHECKING:
    import onnx

Evaluate = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_PAST, _PRESENT = "past_key_values.", "present."
_SEQUENCE_INPUTS = ("input_ids", "attention_mask", "position_ids")


def read_graph(artifact: Artifact, keep_external: bool) -> onnx.ModelProto:
    """The portable graph, after checking that it refers to nothing but the weights file.

    Args:
        artifact: An opened artifact.
        keep_external: Leave the main graph's initializers outside, as references to
            the weights file, for evaluators that map files.

    Raises:
        IntegrityError: The graph is damaged.
    """
    import onnx

    path = artifact.file(GRAPH_PATH)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own class, which is not public
        raise IntegrityError(f"{path} is not an ONNX graph ({error}).", "Compile the model again.") from error
    weights = artifact.weights()
    for tensor, is_main in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = _number(place.get("offset", "0")), _number(place.get("length", ""))
        if place.get("location") != WEIGHTS_PATH or not 0 <= offset <= offset + length <= len(weights):
            raise IntegrityError(
                f"{path}: tensor {tensor.name!r} is not inside {WEIGHTS_PATH}.", "Compile the model again."
            )
        if not (is_main and keep_external):
            tensor.raw_data = bytes(weights[offset : offset + length])
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return model


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else -1


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Every tensor of a model, and whether it is an initializer of the main graph.

    The others are attributes and what subgraphs and functions hold.
    """
    yield from ((tensor, True) for tensor in model.graph.initializer)
    for sparse in model.graph.sparse_initializer:
        yield from ((sparse.values, False), (sparse.indices, False))
    yield from ((tensor, False) for tensor in _node_tensors(model.graph.node))
    for function in model.functions:
        yield from ((tensor, False) for tensor in _node_tensors(function.node))


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


class GraphExecutable:
    """A model of named arrays.

    Args:
        evaluate: Computes the graph's outputs from its inputs, by name.
        signatures: The manifest's.
        device: What it runs on, for people.
    """

    def __init__(self, evaluate: Evaluate, signatures: Mapping[str, Signature], device: str) -> None:
        self._evaluate: Evaluate | None = evaluate
        self._signatures = signatures
        self._device = device

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The manifest's."""
        return self._signatures

    @property
    def device(self) -> str:
        """What it runs on."""
        return self._device

    def run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        outputs = self._compute(inputs)
        return {spec.name: np.asarray(outputs[spec.name]) for spec in self._signatures[signature].outputs}

    def close(self) -> None:
        """Let go of the evaluator and what it holds."""
        self._evaluate = None

    def _compute(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._evaluate is None:
            raise UsageError("the model was closed.", "Load it again.")
        try:
            return self._evaluate(inputs)
        except Exception as error:  # each evaluator has its own for inputs that do not fit together
            raise UsageError(f"{self._device} cannot run the model on these inputs: {first_line(error)}.") from error


class GraphDecoder(GraphExecutable, DecoderExecutable):
    """A decoder over paged KV memory.

    Its graph has the inputs and outputs :class:`aicc.compiler.importers.ImportedModel` describes.

    Args:
        evaluate: Computes the graph's outputs from its inputs, by name.
        signatures: The manifest's; ``default`` is the decoder's.
        device: What it runs on, for people.
        kv_tokens: Tokens the KV memory holds.
        page_size: Tokens a page of it holds.
        max_batch_tokens: Most tokens a step may add; bounds the logits, which a graph computes for
            every token.

    Raises:
        UnsupportedError: The graph has an input this decoder does not know.
        ResourceError: There is no memory for so many tokens.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        signatures: Mapping[str, Signature],
        device: str,
        kv_tokens: int,
        page_size: int = 16,
        max_batch_tokens: int = 256,
    ) -> None:
        super().__init__(evaluate, signatures, device)
        self._page_size = page_size
        self._page_count = -(-kv_tokens // page_size)
        self._max_batch_tokens = max_batch_tokens
        self._inputs = {spec.name for spec in signatures["default"].inputs}
        # [pages, kv_heads, page_size, head_dim] each; zeros are not resident until written.
        self._memory: dict[str, Array] = {}
        for spec in signatures["default"].inputs:
            if spec.name in _SEQUENCE_INPUTS:
                continue
            if not spec.name.startswith(_PAST) or len(spec.shape) != 4 or spec.dtype == "bfloat16":
                raise UnsupportedError(f"{device} does not know what to give the decoder's input {spec.name!r}.")
            _, heads, _, size = (d if isinstance(d, int) else 0 for d in spec.shape)
            try:
                self._memory[spec.name] = np.zeros((self._page_count, heads, page_size, size), spec.dtype)
            except (MemoryError, ValueError) as error:  # the latter for more than can be addressed
                raise ResourceError(
                    f"there is no memory for keys and values of {kv_tokens} tokens.", "Give fewer --kv-tokens."
                ) from error

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self._page_size

    @property
    def page_count(self) -> int:
        """Pages there are."""
        return self._page_count

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens a step may add."""
        return self._max_batch_tokens

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One step, sequence by sequence; see :class:`aicc.runtime.provider.DecoderExecutable`."""
        rows = []
        for i, past in enumerate(batch.past.tolist()):
            start, end = batch.starts[i : i + 2].tolist()
            pages = batch.pages[batch.page_starts[i] : batch.page_starts[i + 1]]
            logits = self._extend(batch.tokens[start:end], past, pages)
            wanted = batch.logit_rows[(batch.logit_rows >= start) & (batch.logit_rows < end)]
            rows.append(logits[wanted - start])
        return np.concatenate(rows).astype(np.float32, copy=False)

    def close(self) -> None:
        """Let go of the evaluator and the KV memory."""
        super().close()
        self._memory = {}

    def _extend(self, tokens: NDArray[np.int64], past: int, pages: NDArray[np.int32]) -> Array:
        """Logits ``[tokens, vocab]`` of one sequence's new tokens, whose keys and values are kept."""
        total = past + len(tokens)
        inputs: dict[str, Array] = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
        }
        inputs = {name: array for name, array in inputs.items() if name in self._inputs}
        for name, memory in self._memory.items():
            _, heads, _, size = memory.shape
            inputs[name] = memory[pages].transpose(1, 0, 2, 3).reshape(1, heads, -1, size)[:, :, :past]
        outputs = self._compute(inputs)
        self._keep({name: outputs[self._present(name)][:, :, past:] for name in self._memory}, past, pages)
        logits: Array = outputs["logits"][0]
        return logits

    @staticmethod
    def _present(name: str) -> str:
        """The output that goes on what an input of the cache begins."""
        return _PRESENT + name.removeprefix(_PAST)

    def _keep(self, new: Mapping[str, Array], past: int, pages: NDArray[np.int32]) -> None:
        """Write the keys and values of new tokens, ``[1, heads, tokens, size]`` each, into their pages."""
        for name, memory in self._memory.items():
            places = np.arange(past, past + new[name].shape[2])
            memory[pages[places // self._page_size], :, places % self._page_size] = new[name][0].transpose(1, 0, 2)
