"""Tokenizers rebuilt from GGUF metadata cut text as the models' own do."""

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from aicc.compiler.importers.gguf_tokenizer import end_token_ids, tokenizer_json
from aicc.runtime.errors import IntegrityError, UnsupportedError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPACE, NEWLINE = "Ġ", "Ċ"


def byte_level(pre: str, more: tuple[str, ...] = (), merges: tuple[str, ...] = ("a b",), **values) -> dict:
    """Metadata of a byte-level vocabulary: every byte, ``ab``, and more."""
    tokens = [*BYTES, "ab", *more]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * len(tokens)),
        "tokenizer.ggml.merges": list(merges),
    } | {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def sentence_piece(pieces: dict[str, float], types: dict[str, int] | None = None, **values) -> dict:
    types = types or {}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": np.array(list(pieces.values())),
        "tokenizer.ggml.token_type": np.array([types.get(piece, 1) for piece in pieces]),
    } | {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def built(metadata: dict) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(metadata, "m.gguf"))


def words(pre: str, text: str) -> list[str]:
    """How a family cuts text before BPE, with readable spaces and line ends."""
    pieces = built(byte_level(pre)).pre_tokenizer.pre_tokenize_str(text)
    return [piece.replace(SPACE, "_").replace(NEWLINE, "/") for piece, _ in pieces]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["It", "'s", "_12345", "!!", "//"]),
        ("smollm", ["It", "'s", "_", "1", "2", "3", "4", "5", "!!", "//"]),
        ("llama-bpe", ["It", "'s", "_", "123", "45", "!!//"]),
        ("qwen2", ["It", "'s", "_", "1", "2", "3", "4", "5", "!!//"]),
        ("gpt-4o", ["It's", "_", "123", "45", "!!//"]),
        ("tekken", ["It", "'s", "_", "1", "2", "3", "4", "5", "!!//"]),
    ],
)
def test_each_family_cuts_words_its_own_way(pre: str, expected: list[str]) -> None:
    assert words(pre, "It's 12345!!\n\n") == expected


def test_merges_join_bytes_in_their_order() -> None:
    tokenizer = built(byte_level("gpt-2", ("abc",), ("a b", "ab c")))
    assert tokenizer.encode("abcab").tokens == ["abc", "ab"]
    assert tokenizer.decode(tokenizer.encode("äb ab\n").ids) == "äb ab\n"


def test_llama3_takes_whole_words_whatever_the_merges_say() -> None:
    assert built(byte_level("llama-bpe", ("xyz",))).encode("xyz").tokens == ["xyz"]
    assert built(byte_level("gpt-2", ("xyz",))).encode("xyz").tokens == ["x", "y", "z"]


def test_control_tokens_are_never_cut_and_left_out_of_text() -> None:
    metadata = byte_level("gpt-2", ("<end>",))
    metadata["tokenizer.ggml.token_type"][-1] = 3
    tokenizer = built(metadata)
    assert tokenizer.encode("a<end>b").tokens == ["a", "<end>", "b"]
    assert tokenizer.decode(tokenizer.encode("a<end>b").ids) == "ab"


def test_a_model_that_wants_a_first_token_gets_it() -> None:
    metadata = byte_level("gpt-2", ("<s>",), bos_token_id=257, add_bos_token=True)
    assert built(metadata).encode("ab").tokens == ["<s>", "ab"]


def test_sentence_piece_joins_best_scores_first_and_falls_back_to_bytes() -> None:
    pieces = {
        "<unk>": 0.0,
        "<0xC3>": 0.0,
        "<0xA4>": 0.0,
        "▁": -5.0,
        "a": -6.0,
        "b": -7.0,
        "ab": -1.0,
        "▁a": -2.0,
        "▁ab": -3.0,
    }
    tokenizer = built(sentence_piece(pieces, {"<unk>": 2, "<0xC3>": 6, "<0xA4>": 6}))
    assert tokenizer.encode("ab").tokens == ["▁ab"]
    assert tokenizer.encode("aä").tokens == ["▁a", "<0xC3>", "<0xA4>"]
    assert tokenizer.decode(tokenizer.encode("aä ab").ids) == "aä ab"


def test_sentence_piece_without_prefix_puts_no_space_in_front() -> None:
    pieces = {"<unk>": 0.0, "▁": -5.0, "a": -6.0, "▁a": -2.0}
    assert built(sentence_piece(pieces, {"<unk>": 2}, add_space_prefix=False)).encode("a a").tokens == ["a", "▁a"]


def test_spaces_a_user_defined_as_one_token_stay_one() -> None:
    pieces = {"<unk>": 0.0, "▁": -5.0, "a": -6.0, "   ": 0.0}
    tokenizer = built(sentence_piece(pieces, {"<unk>": 2, "   ": 4}, add_space_prefix=False))
    assert tokenizer.encode("a   a").tokens == ["a", "   ", "a"]


def test_every_end_the_file_names_or_its_template_writes_ends_a_turn() -> None:
    metadata = byte_level("gpt-2", ("<eos>", "<|im_end|>", "<|end|>"), eos_token_id=257)
    assert end_token_ids(metadata) == (257,)
    assert end_token_ids(metadata | {"tokenizer.chat_template": "{{ x }}<|im_end|>"}) == (257, 258)
    assert end_token_ids(metadata | {"tokenizer.ggml.eot_token_id": 259}) == (257, 259)


def test_a_file_without_tokenizer_has_none() -> None:
    assert tokenizer_json({}, "m.gguf") is None


@pytest.mark.parametrize("values", [{"pre": "made-up"}, {"pre": None}, {"model": "rwkv"}])
def test_rules_not_known_here_are_refused(values: dict) -> None:
    metadata = byte_level("gpt-2") | {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    with pytest.raises(UnsupportedError, match=r"m\.gguf.*known: gpt"):
        tokenizer_json(metadata, "m.gguf")


@pytest.mark.parametrize(
    "values",
    [
        {"tokens": []},
        {"token_type": np.array([1])},
        {"merges": None},
        {"merges": ["abc"]},
        {"merges": ["q Ω"]},
    ],
)
def test_arrays_that_contradict_each_other_are_refused(values: dict) -> None:
    metadata = byte_level("gpt-2") | {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    with pytest.raises(IntegrityError, match=r"m\.gguf"):
        tokenizer_json(metadata, "m.gguf")
