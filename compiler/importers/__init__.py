"""Importers: from a model as it is published to the intermediate graph.

Each importer is one file with one function, ``import_model(source) -> ImportedModel``. Weights
stay where they are: every large initializer is lazy or mapped, and is read when it is written
out. Quantised sources keep their integers: the graph then holds the block-wise
``DequantizeLinear`` form that :mod:`aicc.compiler.quantization.blockwise` builds and matches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from aicc.runtime.artifact import LlmFacts, SourceInfo

SourceKind = Literal["gguf", "huggingface", "onnx"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model found on this machine.

    Attributes:
        path: The ``.gguf`` or ``.onnx`` file, or the Hugging Face folder.
        kind: What its content says it is (never its extension).
        name: What the user called it.
        revision: Package or hub revision, empty for plain files.
        licence: SPDX name when known.
    """

    path: Path
    kind: SourceKind
    name: str
    revision: str = ""
    licence: str = ""


@dataclass(slots=True)
class ImportedModel:
    """What every importer gives.

    Attributes:
        graph: Standard ONNX operators, weights lazy. A decoder has inputs ``input_ids``
            ``[batch, sequence]``, ``attention_mask`` ``[batch, past + sequence]``,
            ``position_ids`` ``[batch, sequence]``, ``past_key_values.<i>.key/value``
            ``[batch, kv_heads, past, head_dim]`` and outputs ``logits``
            ``[batch, sequence, vocab]``, ``present.<i>.key/value``.
        kind: ``decoder`` generates tokens; anything else maps tensors to tensors.
        info: Where it came from.
        llm: Facts about a decoder, None for tensors.
        tokenizer_json: A ``tokenizers`` file's text, None if the model has no tokenizer.
        chat_template: Jinja text, None if there is none.
        tokenizer_config: Values the chat template may use (``bos_token``, ``eos_token``, …).
        notes: What the importer had to decide, for the report.
    """

    graph: ir.Model
    kind: Literal["decoder", "tensors"]
    info: SourceInfo
    llm: LlmFacts | None = None
    tokenizer_json: str | None = None
    chat_template: str | None = None
    tokenizer_config: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Importer = Callable[[Source], ImportedModel]
