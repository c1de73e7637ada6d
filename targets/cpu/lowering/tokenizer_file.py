"""``tokenizer.bin``: a byte-level BPE tokenizer that a C program uses as it is; read by examples/c/tokenizer.c.

All numbers are unsigned 32-bit, little-endian: 8 bytes ``AICCTOK1``; pattern, flags, and how many of each of the
following; token of each byte [256]; where each token's text begins [vocab + 1]; tokens in the order of their text
[vocab]; merges {left, right, rank, result} ordered by the pair; special tokens, longest first; classes of characters
{first, last, classes}; tokens that end an answer; three texts of a chat {offset, bytes}; all text.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers

from aicc.runtime.artifact import Artifact
from aicc.runtime.chat import ChatTemplate
from aicc.runtime.errors import AiccError, UnsupportedError

MAGIC = b"AICCTOK1"
_GPT2, _DIGITS_GPT2, _LLAMA3, _QWEN2 = 1, 2, 3, 4
_WHOLE_WORDS, _COMPOSED = 1, 2
_LETTER, _NUMBER, _SPACE, _DIGIT, _UNSTABLE, _MARK = 1, 2, 4, 8, 16, 32
_NONE = 0xFFFFFFFF
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_WORDS % "{1,3}": _LLAMA3, _WORDS % "": _QWEN2}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def tokenizer_file(artifact: Artifact) -> bytes:
    """The file for an artifact's tokenizer, chat template and end-of-answer tokens.

    Raises:
        UnsupportedError: The tokenizer is of a kind that tokenizer.c does not have; it is named.
    """
    facts = artifact.manifest.llm
    assert facts is not None, "only decoders have it"
    text = artifact.file("tokenizer/tokenizer.json").read_text()
    return encode(json.loads(text), facts.vocab_size, facts.eos_token_ids, _chat(artifact))


def encode(spec: dict[str, Any], vocab_size: int, stops: Iterable[int], chat: tuple[str, str, str] | None) -> bytes:
    """The file for a ``tokenizers`` JSON; errors as :func:`tokenizer_file`.

    Args:
        spec: What ``tokenizer.json`` holds.
        vocab_size: Rows of the model's vocabulary; tokens beyond are left out.
        stops: Tokens that end an answer.
        chat: Text before the first question, after a question, and between an answer and the next question.
    """
    pattern, composed = _pattern(spec.get("pre_tokenizer")), _composed(spec.get("normalizer"))
    model = spec["model"]
    _refuse_variations(model, spec["added_tokens"])
    alphabet = _alphabet()
    vocab: dict[str, int] = {token: id for token, id in model["vocab"].items() if id < vocab_size}
    pieces = [b""] * vocab_size
    for token, id in vocab.items():
        pieces[id] = bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
    added = {each["id"]: each["content"].encode() for each in spec["added_tokens"] if each["id"] < vocab_size}
    for id, content in added.items():
        pieces[id] = content
    single = {byte: vocab.get(character, _NONE) for character, byte in alphabet.items()}
    merges = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in vocab and right in vocab and left + right in vocab:
            merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
    words = model["vocab"]
    # Whole words are looked up among the vocabulary's own tokens alone: an added one is not a word.
    order = sorted(
        range(vocab_size), key=lambda id: b"" if id in added and added[id].decode() not in words else pieces[id]
    )
    ends = list(stops)
    specials = sorted(added, key=lambda id: -len(added[id]))
    ranges = _ranges(composed)
    parts = [part.encode() for part in chat or ("", "", "")]
    offsets = [0, *itertools.accumulate(map(len, pieces))]
    body = b"".join([*pieces, *parts])
    flags = (_WHOLE_WORDS if model.get("ignore_merges") else 0) | (_COMPOSED if composed else 0)
    numbers = [pattern, flags, vocab_size, len(merges), len(specials), len(ranges), len(ends), len(body)]
    numbers += [single[byte] for byte in range(256)] + offsets + order
    for (first, second), (rank, result) in sorted(merges.items()):
        numbers += [first, second, rank, result]
    numbers += specials + [number for each in ranges for number in each] + ends
    start = offsets[-1]
    for part in parts:
        numbers += [start, len(part)]
        start += len(part)
    return MAGIC + np.array(numbers, "<u4").tobytes() + body


def _refuse(what: str) -> UnsupportedError:
    return UnsupportedError(f"there is no C tokenizer for {what}.", "Cut text into tokens elsewhere.")


def _pattern(pre: dict[str, Any] | None) -> int:
    """Which of tokenizer.c's ways of cutting text into words a pre-tokeniser is."""
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if steps and _BYTE_LEVEL.items() <= steps[-1].items():
        own_words = steps[-1].get("use_regex", True)
        if len(steps) == 1 and own_words:
            return _GPT2
        if len(steps) == 2 and own_words and steps[0] == {"type": "Digits", "individual_digits": True}:
            return _DIGITS_GPT2
        if len(steps) == 2 and not own_words and steps[0]["type"] == "Split":
            found = _PATTERNS.get(steps[0]["pattern"].get("Regex", ""))
            if found and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
                return found
    names = " and ".join(step["type"] for step in steps) or "nothing"
    raise _refuse(f"the pre-tokeniser {names} in this form")


def _composed(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refuse(f"the normalizer {normalizer['type']}")
    return normalizer is not None


def _refuse_variations(model: dict[str, Any], added: list[dict[str, Any]]) -> None:
    if model["type"] != "BPE":
        raise _refuse(f"a tokenizer of type {model['type']}")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk"):
        if model.get(field):
            raise _refuse(f"BPE with {field}")
    if model.get("unk_token") is not None and not set(_alphabet()) <= set(model["vocab"]):
        raise _refuse("a vocabulary that lacks bytes and has an unknown token for them")
    for token in added:
        for field in ("lstrip", "rstrip", "single_word"):
            if token.get(field):
                raise _refuse(f"the token {token['content']!r} with {field}")


def _alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _ranges(composed: bool) -> list[tuple[int, int, int]]:
    """Ranges of characters and their classes, as the library that the runtime uses tells them apart."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    everything = "".join(map(chr, points))
    at = np.array(points)
    classes = np.zeros(0x110000, np.uint32)
    for bit, name in ((_LETTER, r"\p{L}"), (_NUMBER, r"\p{N}"), (_SPACE, r"\s")):
        rest = name.upper() if name == r"\s" else f"[^{name}]"
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"{rest}+"), "removed")
        for _, (first, last) in split.pre_tokenize_str(everything):
            classes[at[first:last]] |= bit
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str(everything)
    for _, (first, last) in digits[1::2]:  # the first piece begins with U+0000, which is none
        classes[at[first:last]] |= _DIGIT
    if composed:
        for point, character in zip(points, everything, strict=True):
            if unicodedata.normalize("NFC", character) != character or point in _SECOND_JAMOS:
                classes[point] |= _UNSTABLE
            parts = unicodedata.decomposition(character)
            if parts and not parts.startswith("<") and " " in parts:
                classes[int(parts.split()[1], 16)] |= _UNSTABLE
            if unicodedata.combining(character):
                classes[point] |= _MARK
    edges = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), 0x110000]
    return [(a, b - 1, int(classes[a])) for a, b in itertools.pairwise(edges) if classes[a]]


_SECOND_JAMOS = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # these join the one before them into a syllable


def _chat(artifact: Artifact) -> tuple[str, str, str] | None:
    """What the chat template writes around questions and answers; None if it does more than that."""
    path = "tokenizer/chat_template.jinja"
    if not artifact.has(path):
        return None
    config = (
        json.loads(artifact.file("tokenizer/config.json").read_text()) if artifact.has("tokenizer/config.json") else {}
    )
    template = ChatTemplate(artifact.file(path).read_text(), path, config)
    asks, says = ("Question1", "Question2", "Question3"), ("Answer1", "Answer2")

    def render(turns: int) -> str:
        messages = [{"role": "user", "content": asks[0]}]
        for i in range(turns):
            messages += [{"role": "assistant", "content": says[i]}, {"role": "user", "content": asks[i + 1]}]
        return template.render(messages, add_generation_prompt=True)

    try:
        before, _, after = render(0).partition(asks[0])
        head, _, rest = render(1).partition(says[0])
        between, _, _ = rest.partition(asks[1])
        longest = render(2)
    except AiccError:
        return None
    finally:
        template.close()
    turns = [f"{asks[i]}{after}{says[i]}{between}" for i in range(2)]
    told = "".join([before, *turns, asks[2], after])
    return (before, after, between) if after and told == longest and head == before + asks[0] + after else None
