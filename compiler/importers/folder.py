"""What a Hugging Face folder holds beside its weights: tokenizer, chat template, ends of a text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aicc.compiler.importers.files import read_json, read_text, read_tokenizer
from aicc.compiler.importers.mobius_graph import LIMITS, check_limits, make_config
from aicc.runtime.artifact import EmbeddingFacts
from aicc.runtime.errors import IntegrityError, UnsupportedError

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
_POOLINGS: dict[str, Literal["mean", "cls", "max"]] = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
_EMBEDDING_STEPS = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What is read from the files beside the weights.

    Attributes:
        tokenizer_json: Text of ``tokenizer.json``, None without one.
        chat_template: Jinja text, None if there is none.
        tokenizer_config: Special tokens by name, for the chat template.
        eos_token_ids: Tokens that end a text, without repetition.
        bos_token_id: The token a text begins with, if there is one.
        add_bos: Whether the tokenizer puts it there by itself.
        embedding: How an encoder makes one vector of a text, None if the folder does not say.
        notes: What the user should know.
    """

    tokenizer_json: str | None
    chat_template: str | None
    tokenizer_config: dict[str, str]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    add_bos: bool
    embedding: EmbeddingFacts | None
    notes: list[str] = field(default_factory=list)


def read_config(raw: dict[str, Any], folder: Path) -> Any:
    """The transformers config, its sizes checked; no code of the model's is run.

    Args:
        raw: What ``config.json`` says.
        folder: Where it is.

    Raises:
        IntegrityError: A value is absurd, or breaks a rule of the architecture.
    """
    import transformers

    where = str(folder / "config.json")
    check_limits(where, [(key, key, raw.get(key)) for key in LIMITS])
    load = transformers.AutoConfig.from_pretrained
    config = make_config(lambda: load(folder, trust_remote_code=False, local_files_only=True), where)
    check_limits(where, [(key, key, getattr(config, key, None)) for key in LIMITS])
    return config


def refuse_quantised(raw: dict[str, Any], where: str) -> None:
    """Refuse checkpoints of another tool's number format.

    Raises:
        UnsupportedError: ``config.json`` says the weights are quantised.
    """
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedError(
            f"{where}: the weights are already quantised ({method}).",
            "Give the model with its float weights, or its GGUF form; aicc quantises by itself.",
        )


def read_folder(folder: Path, config: dict[str, Any]) -> FolderFacts:
    """Read the files beside the weights.

    Args:
        folder: A Hugging Face folder.
        config: What its ``config.json`` says.

    Raises:
        IntegrityError: A file is damaged.
    """
    tokenizer = read_tokenizer(folder)
    tokenizer_config = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    bos = next(iter(_ids(config.get("bos_token_id"))), None)
    add_bos = False
    notes: list[str] = []
    if tokenizer is not None and bos is not None:
        from tokenizers import Tokenizer

        add_bos = Tokenizer.from_str(tokenizer).encode("a").ids[:1] == [bos]
    return FolderFacts(
        tokenizer_json=tokenizer,
        chat_template=_chat_template(folder, tokenizer_config),
        tokenizer_config=_special_tokens(tokenizer_config),
        eos_token_ids=tuple(dict.fromkeys(_ids(generation.get("eos_token_id")) + _ids(config.get("eos_token_id")))),
        bos_token_id=bos,
        add_bos=add_bos,
        embedding=_embedding(folder, config, notes),
        notes=notes,
    )


def _ids(value: Any) -> list[int]:
    """Token ids of a config value: one, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item >= 0]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The folder's own file, else what the tokenizer's config holds (one template, or several by name)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in _TOKEN_NAMES:
        token = tokenizer_config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _embedding(folder: Path, config: dict[str, Any], notes: list[str]) -> EmbeddingFacts | None:
    """What a sentence-transformers folder does after the graph: pooling, perhaps normalisation."""
    pooling = _optional_json(folder / "1_Pooling" / "config.json")
    modes = [key.removeprefix("pooling_mode_") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    if not modes:
        return None
    steps = _modules(folder)
    after = " and normalise it" if "Normalize" in steps else ""
    notes.append(f"sentence embedding: pool the last hidden state by {', '.join(modes)}{after}")
    longest = _optional_json(folder / "sentence_bert_config.json").get("max_seq_length")
    limits = [n for n in (longest, config.get("max_position_embeddings")) if type(n) is int and n > 0]
    if len(modes) > 1 or modes[0] not in _POOLINGS or set(steps) - _EMBEDDING_STEPS or not limits:
        notes.append(
            "its embeddings cannot be served: only one pooling by mean, max or first token, with or without "
            "normalisation, of a model that says how long a text may be, is implemented"
        )
        return None
    return EmbeddingFacts(_POOLINGS[modes[0]], "Normalize" in steps, min(limits))


def _modules(folder: Path) -> list[str]:
    """Kinds of the modules a sentence-transformers model consists of, in order."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(read_text(path))]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a list of modules ({error}).", "Download the model again.") from error
