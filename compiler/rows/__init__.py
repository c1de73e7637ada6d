"""A model as operations on rows of tokens: what families that write their own kernels start from.

program.py    the operations
builder.py    the graph as a row program; where it begins and ends: decoder.py, encoder.py
constants.py  vectors, numbers and tables of positions, evaluated
matrix.py     weight matrices
fuse.py       operations that run together, as steps
"""

from __future__ import annotations

from aicc.compiler.importers import ImportedModel
from aicc.compiler.rows.builder import Builder
from aicc.compiler.rows.decoder import DecoderBuilder
from aicc.compiler.rows.encoder import EncoderBuilder


def row_builder(imported: ImportedModel, family: str, head_multiple: int) -> Builder:
    """Makes the row program of a decoder or an encoder, or says what refuses to be one.

    Args:
        imported: The optimised and quantised graph; it is not changed.
        family: For messages: who cannot run what is refused.
        head_multiple: Columns of a head are padded with zeros to a multiple of it before attention.
    """
    kind = DecoderBuilder if imported.kind == "decoder" else EncoderBuilder
    return kind(imported, family, head_multiple)
