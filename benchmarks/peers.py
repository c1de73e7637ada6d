"""The environments of aicc and of its peers, and the same weights in the form each peer takes."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aicc.compiler.importers.gguf_file import read_gguf
from aicc.runtime import machine

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

_QUANTISE = """
import ctypes, sys, llama_cpp
source, output, name = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
params.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(params)))
"""

# What llama-cpp-python is compiled with: all this processor has, in place of the options of its own that say so,
# except AMX, with which it crashes.
_NATIVE = {
    "CFLAGS": "-march=native" + (" -mno-amx-tile -mno-amx-int8" if platform.machine() == "x86_64" else ""),
    "CMAKE_ARGS": "-DGGML_NATIVE=OFF",
}
_NATIVE["CXXFLAGS"] = _NATIVE["CFLAGS"]


def environment() -> Path:
    """The Python of the peers' environment, made or renewed when its requirements or the processor have changed."""
    python, stamp = ENVIRONMENT / "bin/python", ENVIRONMENT / "made-for"
    processor = machine.processor()
    wanted = f"{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()} {_NATIVE} "
    wanted += f"{processor.model} {processor.instruction_sets}"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        _run(sys.executable, "-m", "venv", ENVIRONMENT)
        # Without pip's cache, which could hold a build for another processor.
        _run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", REQUIREMENTS, environ=_NATIVE)
        # optimum-intel asks for it, text models do not use it, and it does not fit a CPU build of torch.
        _run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision")
        stamp.write_text(wanted)
    return python


def installed() -> Path:
    """The Python of an environment that has aicc as a user installs it, from a wheel made of this tree.

    The editable installation of the development environment takes 20 ms more to start.
    """
    python = BUILD / "installed/bin/python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", python.parent.parent)
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    _run(*install, f"{ROOT}[openvino]")
    _run(*install, "--no-deps", "--force-reinstall", ROOT)
    return python


def openvino_export(gguf: Path, bits: int) -> Path:
    """The GGUF's weights, dequantised exactly and exported by optimum-intel at 4 or 8 bits."""
    output = BUILD / f"optimum-int{bits}-{_digest(gguf)}"
    if not output.exists():
        folder, staging = BUILD / "huggingface", BUILD / "optimum.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        _run(ENVIRONMENT / "bin/python", "-c", _DEQUANTISE, gguf.parent, gguf.name, folder)
        command = [ENVIRONMENT / "bin/optimum-cli", "export", "openvino", "--model", folder]
        command += ["--task", "text-generation-with-past", "--weight-format", f"int{bits}"]
        if bits == 4:
            command += ["--ratio", "1.0", "--group-size", str(INT4_GROUP), "--sym"]  # faster than with zero points
        _run(*command, staging)
        shutil.rmtree(folder)
        staging.rename(output)
    return output


def quantised(gguf: Path, name: str) -> Path:
    """The GGUF's weights, dequantised exactly and quantised by llama.cpp, as ``Q4_0``, ``Q4_K_M`` or ``Q8_0``."""
    output = BUILD / f"{gguf.stem}-as-{name}-{_digest(gguf)}.gguf"
    if not output.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        staging = BUILD / "quantised.tmp"
        _run(ENVIRONMENT / "bin/python", "-c", _QUANTISE, gguf, staging, name)
        staging.rename(output)
    return output


@dataclass(frozen=True)
class Sizes:
    """What a GGUF decoder holds, reads and computes.

    Attributes:
        stored: Bytes of all weights.
        read: Bytes of weights read to decode one token: an embedding table that is not also the
            output projection is only looked up.
        layers: Elements of the matrices every prompt token is multiplied with.
        head: Elements of the output projection, which only the last prompt token is multiplied with.
        kv: Bytes of keys and values a token leaves behind, in float16.
        formats: The number formats of the matrices, each with its share of their elements.
    """

    stored: int
    read: int
    layers: int
    head: int
    kv: int
    formats: str


def gguf_sizes(gguf: Path) -> Sizes:
    """Sizes of a GGUF decoder, from its header."""
    tensors = read_gguf(gguf).tensors
    embedding = tensors["token_embd.weight"]
    head = tensors.get("output.weight", embedding)
    matrices = [t for t in tensors.values() if len(t.shape) == 2]
    elements: Counter[str] = Counter()
    for tensor in matrices:
        elements[tensor.type.name] += math.prod(tensor.shape)
    return Sizes(
        stored=sum(t.data.nbytes for t in tensors.values()),
        read=sum(t.data.nbytes for t in tensors.values() if t is head or t is not embedding),
        layers=sum(math.prod(t.shape) for t in matrices if t.name.startswith("blk.")),
        head=math.prod(head.shape),
        kv=sum(2 * t.shape[0] for t in matrices if t.name.endswith(("attn_k.weight", "attn_v.weight"))),
        formats=", ".join(f"{count / elements.total():.0%} {name}" for name, count in elements.most_common()),
    )


@cache
def _digest(gguf: Path) -> str:
    """Names what is made of a file's weights: by these weights, the tools, and how this module uses them."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in (gguf, REQUIREMENTS, Path(__file__)))).hexdigest()[:16]


def _run(*command: object, environ: Mapping[str, str] = {}) -> None:
    # Their chatter belongs with the progress notes, not with the results.
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, env={**os.environ, **environ})
