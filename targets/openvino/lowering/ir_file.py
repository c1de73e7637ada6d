"""The stored graph: OpenVINO IR whose constants lie in the artifact's shared weights file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import openvino as ov

from aicc.compiler.disk import scratch
from aicc.compiler.lowering import WeightStore
from aicc.runtime.errors import ResourceError
from aicc.targets.openvino.lowering.weights import Placed


def write_ir(model: ov.Model, placed: dict[str, Placed], store: WeightStore, path: Path) -> None:
    """Write a model whose weight parameters become constants in the shared weights file.

    Args:
        model: Every large constant is a parameter with a name in ``placed``.
        placed: Where each weight parameter's constant is in the weights file.
        store: Takes the small constants, as one piece.
        path: The ``.xml`` to write.

    Raises:
        ResourceError: No room for the temporary copy of the graph.
    """
    with scratch("openvino") as folder:
        xml, small = folder / "model.xml", folder / "model.bin"
        _serialize(model, xml, small)
        base = store.add(small.read_bytes()) if small.stat().st_size else 0
        tree = ElementTree.parse(xml)
    for layer in tree.getroot().iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const":
            data.set("offset", str(base + int(data.get("offset"))))
        elif layer.get("type") == "Parameter" and layer.get("name") in placed:
            constant = placed[layer.get("name")]
            layer.set("type", "Const")
            data.set("offset", str(constant.offset))
            data.set("size", str(constant.bytes))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _serialize(model: ov.Model, xml: Path, small: Path) -> None:
    try:
        ov.serialize(model, xml, small)
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        raise ResourceError(
            f"the temporary folder {xml.parent} cannot be written: is its disk full?",
            "Free some space, or set TMPDIR to a folder on another disk.",
        ) from error
