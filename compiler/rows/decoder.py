"""Decoders as row programs: tokens in, logits out, keys and values kept in pages."""

from __future__ import annotations

import onnx_ir as ir

from aicc.compiler.importers import ImportedModel
from aicc.compiler.passes.attention_mask import attention_visibility
from aicc.compiler.rows import program as rows
from aicc.compiler.rows.builder import Builder, Refused
from aicc.compiler.rows.matrix import Matrix
from aicc.compiler.rows.program import Program


class DecoderBuilder(Builder):
    """Makes the program of a decoder."""

    def __init__(self, imported: ImportedModel, family: str, head_multiple: int) -> None:
        assert imported.llm is not None
        program = Program(imported.llm.vocab_size, imported.llm.context_length)
        super().__init__(imported.graph, program, family, head_multiple)
        self.windows = attention_visibility(self.model, self.program.context, caps=True)

    def operations(self) -> None:
        """From ``input_ids`` to ``logits``; the cache's inputs and outputs are the pages' business."""
        logits = next(v for v in self.model.graph.outputs if v.name == "logits")
        self.compute([logits])
        if logits not in self.made:
            raise Refused(logits.producer(), "the logits are not computed from rows of activations")
        end = self.made[logits]
        if end.width != self.program.vocab:
            raise Refused(logits.producer(), f"the logits have {end.width} columns, not {self.program.vocab}")
        self.program.ops.append(rows.Logits(logits.producer().name or "logits", None, end))

    def begins(self, node: ir.Node) -> bool:
        """Looking up tokens does."""
        return node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "input_ids"

    def looked_up(self, node: ir.Node) -> tuple[Matrix, int | None]:
        """Tokens are the one input."""
        if not self.begins(node):
            raise Refused(node, "it looks up something else than tokens")
        return self.matrix(node, node.inputs[0]), 0

    def visible(self, node: ir.Node) -> tuple[bool, int]:
        """What the mask's subgraph says."""
        return True, self.windows[node.name].window
