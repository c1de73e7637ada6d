"""The peers: their environment, and the same weights in the form each of them takes."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
from pathlib import Path

from aicc.compiler.importers.gguf_file import read_gguf

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
BUILD = ROOT / "build/bench"
INT4_GROUP = 32  # as the published GGUF has it, and aicc's default

_DEQUANTISE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, output = sys.argv[1:]
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output)
AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).save_pretrained(output)
"""


def environment() -> Path:
    """The Python of the peers' environment, made or renewed when its requirements have changed."""
    python, stamp = ENVIRONMENT / "bin/python", ENVIRONMENT / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        _run(sys.executable, "-m", "venv", ENVIRONMENT)
        _run(python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS)
        # optimum-intel asks for it, text models do not use it, and it does not fit a CPU build of torch.
        _run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision")
        stamp.write_text(wanted)
    return python


def openvino_export(gguf: Path) -> Path:
    """The GGUF's weights, dequantised exactly and exported by optimum-intel at int4."""
    digest = hashlib.sha256(gguf.read_bytes() + REQUIREMENTS.read_bytes()).hexdigest()[:16]
    output = BUILD / f"optimum-int4-{digest}"
    if not output.exists():
        folder, staging = BUILD / "huggingface", BUILD / "optimum-int4.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        _run(ENVIRONMENT / "bin/python", "-c", _DEQUANTISE, gguf.parent, gguf.name, folder)
        command = [ENVIRONMENT / "bin/optimum-cli", "export", "openvino", "--model", folder]
        command += ["--task", "text-generation-with-past", "--weight-format", "int4", "--ratio", "1.0"]
        _run(*command, "--group-size", str(INT4_GROUP), staging)
        shutil.rmtree(folder)
        staging.rename(output)
    return output


def gguf_sizes(gguf: Path) -> tuple[int, int, int]:
    """What a GGUF decoder reads and computes, from its header.

    Returns:
        Bytes of weights read to decode one token (an embedding table that is not also the output
        projection is only looked up); elements of the matrices every prompt token is multiplied
        with; elements of the output projection, which only the last one is.
    """
    tensors = read_gguf(gguf).tensors
    embedding = tensors["token_embd.weight"]
    head = tensors.get("output.weight", embedding)
    read = sum(t.data.nbytes for t in tensors.values() if t is head or t is not embedding)
    layers = sum(math.prod(t.shape) for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2)
    return read, layers, math.prod(head.shape)


def _run(*command: object) -> None:
    # Their chatter belongs with the progress notes, not with the results.
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
