"""The second importer for Hugging Face models: optimum-intel, driven in an environment of its own.

It knows architectures mobius lacks and exports OpenVINO IR, which serves the openvino family only.
The export is at float32 whatever the checkpoint is in, so that weight formats are chosen by the
``quantize`` phase as for any other model, and quality is measured against what was published. No
code of the model's is run: remote code stays off and the hub is not asked.
"""

from __future__ import annotations

import math
import re
import shutil
import weakref
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import onnx_ir as ir

from aicc.compiler.disk import scratch
from aicc.compiler.importers import ArchitectureError, ImportedModel, Source
from aicc.compiler.importers.files import read_json
from aicc.compiler.importers.folder import FolderFacts, read_config, read_folder, refuse_quantised
from aicc.compiler.importers.mobius_graph import NO_END
from aicc.compiler.importers.openvino_ir import DOMAIN, read_openvino_ir
from aicc.compiler.importers.optimum_environment import VERSION, Progress, environment, last_error, run
from aicc.compiler.importers.safetensors_file import read_weights, weight_files
from aicc.runtime.artifact import LlmFacts, SourceInfo
from aicc.runtime.errors import ResourceError, UnsupportedError

_EXPORT_SECONDS = 3600
_GENERATES = "text-generation-with-past"
# What the end of an architecture's name in config.json says the model is for, in optimum-intel's words.
TASKS = {
    "ForCausalLM": _GENERATES,
    "LMHeadModel": _GENERATES,
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForAudioFrameClassification": "audio-frame-classification",
    "ForXVector": "audio-xvector",
    "ForCTC": "automatic-speech-recognition",
    "Model": "feature-extraction",
}
_ELSEWHERE = "Export the model to ONNX and give that file."
_LOOKED_UP = re.compile(r"embed|\bw[tp]e\b")


def import_model(source: Source, progress: Progress = lambda line: None) -> ImportedModel:
    """Export a Hugging Face folder and read the result.

    The export lies in a temporary folder, which goes when the imported model does.

    Args:
        source: A Hugging Face folder.
        progress: Called with one line for each step that takes time.

    Raises:
        UnsupportedError: Another kind of source, or a model optimum-intel cannot export as one graph.
        ResourceError: Not enough disk, memory or time.
    """
    raw, task = _read_config(source)
    with ExitStack() as leaving:
        folder = leaving.enter_context(scratch("optimum"))
        xml = export_openvino(source, folder / "ir", task, progress)
        imported = _imported(source, raw, task, read_openvino_ir(xml))
        imported.exported = xml
        weakref.finalize(imported, leaving.pop_all().close)
    return imported


def check_exportable(source: Source) -> str:
    """The model's type, if optimum-intel exports such models as one graph.

    Raises:
        UnsupportedError: Another kind of source, or an architecture optimum-intel does not know.
    """
    return str(_read_config(source)[0]["model_type"])


def preview(source: Source) -> ImportedModel:
    """What an export would give as far as config.json and the weights' headers tell, without one.

    The graph has every weight and a node that uses it, so that bytes and formats can be told, and
    nothing else.

    Raises:
        UnsupportedError: Another kind of source, or an architecture optimum-intel does not know.
    """
    raw, task = _read_config(source)
    weights = read_weights(weight_files(source.path))
    config = read_config(raw, source.path)
    graph = _outline({name: tuple(weight.shape) for name, weight in weights.items()}, config)
    imported = _imported(source, raw, task, graph)
    imported.notes.append("only the export itself shows whether every operator is taken; nodes and bytes are predicted")
    return imported


def architectures() -> dict[str, tuple[str, ...]]:
    """Model types optimum-intel exports, with their tasks: a table of this version, as it says itself."""
    text = (resources.files("aicc.compiler") / "data/optimum_architectures.txt").read_text()
    return {name: tuple(tasks) for name, *tasks in map(str.split, text.splitlines())}


def _read_config(source: Source) -> tuple[dict[str, Any], str]:
    """config.json and the task to export for.

    Raises:
        UnsupportedError: Nothing optimum-intel exports as one graph.
    """
    if source.kind != "huggingface":
        raise UnsupportedError(
            f"the optimum importer reads Hugging Face folders, and {source.name} is {source.kind}.",
            "Leave --importer out.",
        )
    where = source.path / "config.json"
    raw = read_json(where)
    model_type, named = raw.get("model_type"), raw.get("architectures")
    tasks = architectures().get(model_type, ()) if isinstance(model_type, str) else ()
    if not tasks:
        raise ArchitectureError(
            f"{where}: optimum-intel {VERSION} exports no models of type {model_type!r}.", _ELSEWHERE
        )
    name = str(named[0]) if isinstance(named, list) and named else ""
    task = next((task for ending, task in TASKS.items() if name.endswith(ending)), "")
    if task not in tasks:
        what = f"{name!r}" if name else "a model without architectures"
        raise ArchitectureError(
            f"{where}: {what} is not what aicc takes of {model_type} models from optimum-intel: {', '.join(tasks)}.",
            _ELSEWHERE,
        )
    refuse_quantised(raw, str(where))
    return raw, task


def export_openvino(
    source: Source,
    directory: Path,
    task: str,
    progress: Progress = lambda line: None,
    timeout: float = _EXPORT_SECONDS,
) -> Path:
    """Run the export.

    Args:
        source: A Hugging Face folder.
        directory: Folder to make; nothing is left of it when the export fails.
        task: What the model is for, in optimum-intel's words.
        progress: Called with one line for each step that takes time.
        timeout: Seconds the export may take.

    Returns:
        The path of ``openvino_model.xml``, its weights beside it at float32. A language model has
        the inputs ``input_ids``, ``attention_mask``, ``beam_idx`` and mostly ``position_ids``, and
        its KV cache is the model's state.

    Raises:
        UnsupportedError: optimum-intel cannot export it, or not as one graph.
        UsageError: The environment cannot be made.
        ResourceError: Not enough disk, memory or time.
    """
    _require_space(source, directory.parent)
    python = environment(progress)
    progress(f"exporting {source.name} with optimum-intel {VERSION}, which takes minutes")
    command = [str(python), "-P", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(source.path.resolve()), "--task", task, "--weight-format", "fp32"]
    command += ["--disable-convert-tokenizer", str(directory)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        result = run(command, timeout, f"exporting {source.name}", offline)
        if "No space left on device" in result.stderr:
            raise _no_space(source, directory.parent)
        made = sorted(path.name for path in directory.glob("*.xml"))
        if result.returncode or made != ["openvino_model.xml"]:
            several = f"it becomes {len(made)} graphs, {', '.join(made)}"
            why = last_error(result.stderr) if result.returncode or not made else several
            raise UnsupportedError(f"optimum-intel cannot export {source.name}: {why}.", _ELSEWHERE)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory / "openvino_model.xml"


def _require_space(source: Source, folder: Path) -> None:
    needed = 4 * sum(math.prod(weight.shape) for weight in read_weights(weight_files(source.path)).values())
    if needed > shutil.disk_usage(folder).free:
        raise _no_space(source, folder)


def _no_space(source: Source, folder: Path) -> ResourceError:
    return ResourceError(
        f"the disk of {folder} cannot hold {source.name} exported at float32.",
        "Free some space, or set TMPDIR to a folder on another disk.",
    )


def _imported(source: Source, raw: dict[str, Any], task: str, graph: ir.Model) -> ImportedModel:
    beside = read_folder(source.path, raw)
    notes = [f"optimum-intel {VERSION} gives OpenVINO IR ({task}): no portable graph, openvino targets only"]
    decoder = task == _GENERATES
    facts = _facts(raw, source.path, graph, beside, notes) if decoder else None
    return ImportedModel(
        graph=graph,
        kind="decoder" if decoder else "tensors",
        info=SourceInfo(source.name, "huggingface", "", source.revision, source.licence),
        llm=facts,
        embedding=None if decoder else beside.embedding,
        tokenizer_json=beside.tokenizer_json,
        chat_template=beside.chat_template,
        tokenizer_config=beside.tokenizer_config,
        notes=notes + beside.notes + ([NO_END] if facts is not None and not facts.eos_token_ids else []),
        weight_files=weight_files(source.path),
    )


def _facts(raw: dict[str, Any], folder: Path, graph: ir.Model, beside: FolderFacts, notes: list[str]) -> LlmFacts:
    """Facts of a decoder: sizes of the cache from the graph if it has one, the rest from the config."""
    config = read_config(raw, folder)
    layers, kv_heads, head_dim = _cache_sizes(graph) or _predicted_cache_sizes(config)
    return LlmFacts(
        context_length=_context_length(raw, config, notes),
        vocab_size=config.vocab_size,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eos_token_ids=tuple(index for index in beside.eos_token_ids if index < config.vocab_size),
        bos_token_id=beside.bos_token_id if (beside.bos_token_id or 0) < config.vocab_size else None,
        add_bos=beside.add_bos,
    )


def _cache_sizes(graph: ir.Model) -> tuple[int, int, int] | None:
    """Layers, heads and head size of the states an export keeps; None for a graph without states.

    Raises:
        UnsupportedError: A state is no KV cache, as in state-space models.
    """
    shapes = []
    for node in graph.graph:
        if node.op_type == "ReadValue":
            shape = [size.strip() for size in node.attributes.get_string("variable_shape", "").split(",")]
            if len(shape) != 4 or not shape[1].isdigit() or not shape[3].isdigit():
                raise UnsupportedError(
                    f"the model keeps the state {node.attributes.get_string('variable_id', '')!r}, "
                    "which is no cache of keys or values.",
                    _ELSEWHERE,
                )
            shapes.append((int(shape[1]), int(shape[3])))
    return (len(shapes) // 2, max(s[0] for s in shapes), max(s[1] for s in shapes)) if shapes else None


def _predicted_cache_sizes(config: Any) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
    return config.num_hidden_layers, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _context_length(raw: dict[str, Any], config: Any, notes: list[str]) -> int:
    """Tokens the exported graph is right for, whatever else runs in the same batch."""
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
    known = [value for name in names if type(value := getattr(config, name, None)) is int and value > 0]
    if not known:
        notes.append("config.json does not say how long a context may be; 2048 tokens are taken")
    length = known[0] if known else 2048
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    scaling = rope.get("rope_type") or rope.get("type") if isinstance(rope, dict) else None
    limits = []
    if scaling in ("longrope", "su", "dynamic"):
        original = rope.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
        limits.append((original, f"{scaling} positions change with the longest text of a batch"))
    if getattr(config, "use_sliding_window", True):
        window = getattr(config, "sliding_window", None)
        limits.append((window, "the export may lose the sliding window"))
    for limit, reason in limits:
        if type(limit) is int and 0 < limit < length:
            notes.append(f"the context ends at {limit} of {length} tokens: {reason}")
            length = limit
    return length


def _outline(shapes: dict[str, tuple[int, ...]], config: Any) -> ir.Model:
    """A graph of nothing but weights and their first use, as the names of a checkpoint tell it."""
    single = ir.TensorType(ir.DataType.FLOAT)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    vocabulary = getattr(config, "vocab_size", 0)
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    nodes, initializers = [], []

    def use(op_type: str, inputs: list[ir.Value], shape: list[Any]) -> ir.Value:
        node = ir.node(op_type, inputs, domain="" if op_type == "Transpose" else DOMAIN)
        node.outputs[0].name, node.outputs[0].type = f"{inputs[-1].name}.{op_type}", single
        node.outputs[0].shape = ir.Shape(shape)
        nodes.append(node)
        return node.outputs[0]

    ends = []
    for name, shape in shapes.items():
        tensor = ir.LazyTensor(lambda: ir.tensor([0.0]), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
        weight = ir.Value(name=name, type=single, shape=ir.Shape(shape), const_value=tensor)
        initializers.append(weight)
        table = len(shape) == 2 and _LOOKED_UP.search(name) is not None
        if table:
            ends.append(use("Gather", [weight, ids], ["batch", "sequence", shape[1]]))
        if len(shape) == 2 and (not table or (tied and shape[0] == vocabulary)):
            turned = use("Transpose", [weight], [shape[1], shape[0]])
            ends.append(use("MatMul", [ends[-1] if ends else weight, turned], ["batch", "sequence", shape[0]]))
        elif not table:
            ends.append(use("Add", [weight], ["batch"]))
    end = ir.node("Result", ends, domain=DOMAIN)
    end.outputs[0].name, end.outputs[0].type, end.outputs[0].shape = "logits", single, ir.Shape(["batch"])
    opsets = {"": 24, DOMAIN: 1}
    graph = ir.Graph([ids], end.outputs, nodes=[*nodes, end], initializers=initializers, opset_imports=opsets)
    return ir.Model(graph, ir_version=11)
