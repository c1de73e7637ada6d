"""How much a compiled decoder lost: KL divergence and top-1 agreement against its source.

Both models read the same text, teacher-forced, and their next-token distributions are compared at
every position. The reference is the source at float32: the portable graph, as the importer gave
it, run by onnxruntime, with quantised weights dequantised in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from aicc.compiler.disk import scratch
from aicc.compiler.importers import ImportedModel
from aicc.compiler.models import Progress
from aicc.runtime.artifact import Quality
from aicc.runtime.errors import MismatchError, QualityError, ResourceError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from aicc.runtime.generator import Model

WINDOW = 512  # tokens read at once; each window starts afresh
_ROWS = 8  # positions compared at once: their float64 temporaries stay in a cache, which halves the time

Floats = NDArray[np.float32]


class Divergence:
    """Running comparison of next-token distributions, in float64 and bounded memory.

    Example:
        divergence = Divergence()
        divergence.add(candidate_logits, reference_logits, ids)
        print(divergence.quality("my text").kl_mean)
    """

    def __init__(self) -> None:
        self._kl: list[NDArray[np.float64]] = []
        self._agreed = 0
        self._loss = 0.0
        self._loss_reference = 0.0
        self._predicted = 0

    def add(self, candidate: Floats, reference: Floats, ids: NDArray[np.int64]) -> None:
        """Compare one window.

        Args:
            candidate: Logits ``[tokens, vocab]`` of the compiled model; row t follows ``ids[t]``.
            reference: Logits ``[tokens, vocab]`` of the source.
            ids: ``[tokens]``, the text itself.

        Raises:
            MismatchError: The two do not speak of the same tokens.
            QualityError: The divergence is not finite.
        """
        if candidate.shape != reference.shape or len(ids) != len(candidate):
            raise MismatchError(
                f"logits of {candidate.shape} cannot be compared with the reference's {reference.shape}.",
                "Give the model the artifact was compiled from as the reference.",
            )
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            log_q, log_p = log_softmax(candidate[rows]), log_softmax(reference[rows])
            kl = kl_divergence(log_p, log_q)
            if not np.isfinite(kl).all():
                raise QualityError(
                    f"the compiled model and its source cannot be compared in tokens {start} to {start + len(kl)}: "
                    "a logit is not a number, or a token the source expects has probability 0.",
                    "Compile with --quant fp32 to see whether the quantisation is the cause.",
                )
            self._kl.append(kl)
            self._agreed += int((candidate[rows].argmax(axis=1) == reference[rows].argmax(axis=1)).sum())
            following = ids[start + 1 : start + _ROWS + 1]
            self._loss -= float(log_q[range(len(following)), following].sum())
            self._loss_reference -= float(log_p[range(len(following)), following].sum())
            self._predicted += len(following)

    def quality(self, text: str) -> Quality:
        """The figures so far; ``text`` says what was read. Needs at least one window of two tokens."""
        kl = np.concatenate(self._kl)
        return Quality(
            tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.percentile(kl, 99)),
            top1_agreement=self._agreed / len(kl),
            ppl_reference=float(np.exp(self._loss_reference / self._predicted)),
            ppl=float(np.exp(self._loss / self._predicted)),
            text=text,
        )


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural logarithm of the softmax of each row ``[rows, vocab]``, in float64."""
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities become NaN, which the caller refuses
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def kl_divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sum p (log p - log q)`` of each row ``[rows, vocab]``, in nats; at least 0."""
    p = np.exp(log_p)
    # 0 log 0 is 0; NaN must get through to be refused.
    difference = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p != 0)
    return np.maximum((p * difference).sum(axis=1), 0.0)


def measure_quality(
    model: Model, imported: ImportedModel, text: Path | None = None, progress: Progress | None = None
) -> Quality:
    """Compare a loaded artifact with its source on a text neither was tuned on.

    Args:
        model: The compiled decoder.
        imported: Its source, before any pass changed the graph.
        text: UTF-8 file to read, whole; None is the project's own held-out text.
        progress: Called with one line after each window.

    Raises:
        UsageError: The text is unreadable or shorter than two tokens.
        UnsupportedError: onnxruntime cannot run the source's graph.
        MismatchError: The artifact was not made from this source.
        QualityError: The divergence is not finite.
        ResourceError: No room for the reference graph on disk.
    """
    content, description = read_text(text)
    ids = np.asarray(model.tokenizer.encode(content), np.int64)
    if len(ids) < 2:
        raise UsageError(f"{description} has {len(ids)} tokens.", "Give a text of some hundred words or more.")
    context = imported.llm.context_length if imported.llm else WINDOW
    # A last window of one token would have nothing to predict.
    windows = [w for s in range(0, len(ids), min(WINDOW, context)) if len(w := ids[s : s + min(WINDOW, context)]) > 1]
    # Where prompts have kernels of their own, a text is read in both ways, and the worse is told.
    divergences = {generated: Divergence() for generated in ((False, True) if model.prompts_apart else (False,))}
    done, total = 0, sum(map(len, windows))
    with reference(imported) as reference_logits:
        for window in windows:
            wanted = reference_logits(window)
            for generated, divergence in divergences.items():
                divergence.add(model.logits(window.tolist(), generated), wanted, window)
            done += len(window)
            if progress is not None:
                progress(f"compared {done} of {total} tokens")
    return max((d.quality(description) for d in divergences.values()), key=lambda quality: quality.kl_mean)


def read_text(path: Path | None) -> tuple[str, str]:
    """The text to read, and its name with its sha256 for :attr:`Quality.text`.

    Raises:
        UsageError: The file cannot be read as UTF-8.
    """
    try:
        data = path.read_bytes() if path else (resources.files("aicc.compiler") / "data/heldout.txt").read_bytes()
        name = path.name if path else "heldout.txt"
        return data.decode(), f"{name} sha256:{hashlib.sha256(data).hexdigest()}"
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the text {path} cannot be read: {error}.", "Give a plain UTF-8 text file.") from error


@contextmanager
def reference(imported: ImportedModel) -> Iterator[Callable[[NDArray[np.int64]], Floats]]:
    """The source at float32, as a function from ids ``[tokens]`` to logits ``[tokens, vocab]``.

    A model exported as OpenVINO IR is read as it was exported, attention and all, by OpenVINO. Any
    other: the graph is written to a temporary folder weight by weight and mapped by onnxruntime, so that
    memory holds one dequantised matrix at a time, not the model.
    """
    if imported.exported is not None:
        yield _exported_reference(imported.exported)
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Up to fusing Transpose into MatMul: the same numbers without a second copy of every matrix.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # Both keep memory for the next run that a matrix could have used in this one.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    # Nothing may be computed in integers, and no weight may be kept a second time.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")
    with scratch("reference") as directory:
        path = directory / "model.onnx"
        try:
            ir.save(imported.graph, path, external_data="model.data")
        except OSError as error:
            remedy = "Free some space or point TMPDIR elsewhere."
            raise ResourceError(f"the reference cannot be written to {directory}: {error}.", remedy) from error
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # onnxruntime's own classes share no narrower base
            raise UnsupportedError(f"onnxruntime cannot run the source's graph: {error}.") from error
        yield lambda ids: session.run(["logits"], _decoder_inputs(session.get_inputs(), ids))[0][0]


def _exported_reference(xml: Path) -> Callable[[NDArray[np.int64]], Floats]:
    import openvino as ov

    compiled = ov.Core().compile_model(
        xml,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    )
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.inputs]

    def logits(ids: NDArray[np.int64]) -> Floats:
        count = len(ids)
        known = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.reset_state()
        found: Floats = request.infer({name: known[name] for name in names})["logits"][0].copy()
        return found

    return logits


def _decoder_inputs(specs: list, ids: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Inputs of an imported decoder for one sequence without a past (see ``ImportedModel.graph``)."""
    known = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
    }
    past = {
        spec.name: np.zeros((1, spec.shape[1], 0, spec.shape[3]), np.float32) for spec in specs if len(spec.shape) == 4
    }
    return {spec.name: (known | past)[spec.name] for spec in specs}
