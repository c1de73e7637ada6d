"""From the tokenizer in a GGUF file's metadata to a ``tokenizer.json``.

Two families: ``gpt2`` is byte-level BPE, whose merges are in the file and whose way of cutting text
into words is named by ``tokenizer.ggml.pre``; ``llama`` is SentencePiece's BPE, whose merges follow
from the scores. The patterns are those of the models' own ``tokenizer.json`` files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from aicc.runtime.errors import IntegrityError, UnsupportedError

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # values of tokenizer.ggml.token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _GPT4O.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True)
class _Words:
    """How text is cut into words before BPE.

    Attributes:
        pattern: Words, None for GPT-2's own pattern.
        single_digits: Cut digits apart first.
        whole_words: Take a word that is a token as it is, whatever the merges say.
        nfc: Compose characters first.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    nfc: bool = False


_GPT2_WORDS, _DIGIT_WORDS = _Words(), _Words(single_digits=True)
_LLAMA3_WORDS, _QWEN2_WORDS = _Words(_LLAMA3, whole_words=True), _Words(_QWEN2, nfc=True)
_WORDS = {
    "gpt-2": _GPT2_WORDS,
    "phi-2": _GPT2_WORDS,
    "olmo": _GPT2_WORDS,
    "smollm": _DIGIT_WORDS,
    "starcoder": _DIGIT_WORDS,
    "refact": _DIGIT_WORDS,
    "command-r": _DIGIT_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "smaug-bpe": _Words(_LLAMA3),
    "dbrx": _Words(_LLAMA3),
    "qwen2": _QWEN2_WORDS,
    "deepseek-r1-qwen": _QWEN2_WORDS,
    "tekken": _Words(_TEKKEN, whole_words=True),
    "gpt-4o": _Words(_GPT4O),
}


def tokenizer_json(metadata: Mapping[str, Any], where: str) -> str | None:
    """The text of a ``tokenizer.json`` that tokenises as the model was trained; None without one.

    Args:
        metadata: Of the GGUF file.
        where: File, for messages.

    Raises:
        UnsupportedError: A tokenizer whose rules are not known here.
        IntegrityError: The tokenizer's arrays contradict each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    tokens, types = _vocabulary(metadata, where)
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(metadata, tokens, where)
        elif kind == "llama":
            tokenizer = _sentence_piece(metadata, tokens, types, where)
        else:
            raise UnsupportedError(
                f"{where}: tokenizers of kind {kind!r} are not supported (tokenizer.ggml.model); known: gpt2, llama.",
                "Use the model's Hugging Face folder instead.",
            )
        _add_tokens(tokenizer, metadata, tokens, types)
    except (UnsupportedError, IntegrityError):
        raise
    except Exception as error:  # tokenizers' Rust errors are plain Exceptions
        raise IntegrityError(f"{where}: the tokenizer cannot be built: {error}.", "Convert the model again.") from error
    return tokenizer.to_str()


def _vocabulary(metadata: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not tokens:
        raise IntegrityError(f"{where} has no tokenizer.ggml.tokens.", "Convert the model again.")
    types = [1] * len(tokens) if types is None else list(types)
    if len(types) != len(tokens):
        raise IntegrityError(
            f"{where}: {len(tokens)} tokens and {len(types)} token types (tokenizer.ggml.token_type).",
            "Convert the model again.",
        )
    return tokens, [int(t) for t in types]


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Text → id; of tokens with the same text the first wins, as in llama.cpp."""
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocabulary.setdefault(token, index)
    return vocabulary


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    words = _WORDS.get(pre)
    if words is None:
        raise UnsupportedError(
            f"{where}: how this tokenizer cuts words is not known here (tokenizer.ggml.pre = {pre!r}); "
            f"known: {', '.join(_WORDS)}.",
            "Convert the model again with a current llama.cpp, or use its Hugging Face folder.",
        )
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges") or []]
    if not merges or any(len(pair) != 2 for pair in merges):
        raise IntegrityError(f"{where}: tokenizer.ggml.merges holds no pairs.", "Convert the model again.")
    tokenizer = Tokenizer(BPE(_numbered(tokens), merges, ignore_merges=words.whole_words))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words.single_digits else []
    if words.pattern:
        steps.append(pre_tokenizers.Split(Regex(words.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if words.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise IntegrityError(
            f"{where}: {len(tokens)} tokens and {0 if scores is None else len(scores)} scores (tokenizer.ggml.scores).",
            "Convert the model again.",
        )
    vocabulary = _numbered(tokens)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    merges = _merges_from_scores(vocabulary, [float(score) for score in scores])
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in types))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best token first (as transformers converts)."""
    found = []
    for token, index in vocabulary.items():
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-scores[index], -len(left), -len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> None:
    """Tokens that are never cut, and the ones put around every text."""
    vocabulary = _numbered(tokens)
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token and vocabulary[token] == index
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    before = _around(metadata, tokens, "bos")
    after = _around(metadata, tokens, "eos")
    if before or after:
        template = [*before, ("$A", None), *after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(f"{text}:0" for text, _ in template), special_tokens=[*before, *after]
        )


def _around(metadata: Mapping[str, Any], tokens: list[str], which: str) -> list[tuple[str, int]]:
    """The bos or eos token with its id, if the model wants it around every text."""
    index = token_id(metadata, which, len(tokens))
    return [(tokens[index], index)] if index is not None and metadata.get(f"tokenizer.ggml.add_{which}_token") else []


def token_id(metadata: Mapping[str, Any], which: str, count: int) -> int | None:
    """``tokenizer.ggml.<which>_token_id``, None where the file has none or none that exists."""
    value = metadata.get(f"tokenizer.ggml.{which}_token_id")
    return value if isinstance(value, int) and 0 <= value < count else None


# What ends a turn in the published chat templates, for files that do not name it (llama.cpp keeps such a list too).
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")


def end_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Every token that ends a text or a turn, the file's own ``eos`` first."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    named = [token_id(metadata, which, len(tokens)) for which in ("eos", "eot", "eom")]
    template = metadata.get("tokenizer.chat_template") or ""
    vocabulary = _numbered(tokens)
    written = [vocabulary[end] for end in _TURN_ENDS if end in vocabulary and end in template]
    return tuple(dict.fromkeys(index for index in [*named, *written] if index is not None))
