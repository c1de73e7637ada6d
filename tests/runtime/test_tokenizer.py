"""Text to ids and back, and text that streams without ever being taken back."""

import json
import random
import string
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from aicc.runtime.errors import IntegrityError, UnsupportedError, UsageError
from aicc.runtime.tokenizer import StreamDecoder, Tokenizer

SPECIAL = "<|im_start|>"
PIECES = ["▁Hello", "▁world", "▁", "a", "b", "▁ab", ",", "<s>"]
# Characters people write. The model's own vocabulary lacks some bytes, such as control characters.
WRITTEN = st.sampled_from(string.printable[:-2] + "éßñøЖдλעבمرहिन्दी你好日本語한국어€–“”…🦜👩\u200d🔬")


@pytest.fixture(scope="session")
def sentence_piece(tmp_path_factory) -> Tokenizer:
    """In the style of Llama 2: spaces are ▁, unknown characters are spelled in bytes, one leading space is dropped."""
    vocabulary = {piece: i for i, piece in enumerate([*PIECES, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(models.BPE(vocabulary, [], byte_fallback=True, unk_token=None))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer(path)


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> str:
    stream = tokenizer.stream(prompt or [])
    return "".join([*map(stream.push, ids), stream.finish()])


def test_prompts_have_the_ids_the_models_authors_give_them(tokenizer, golden):
    raw = [case for case in golden if case["kind"] == "raw"]
    assert raw
    assert [tokenizer.encode(case["text"]) for case in raw] == [case["prompt_ids"] for case in raw]


def test_decoding_shows_special_tokens_unless_told_otherwise(tokenizer, golden):
    case = golden[0]
    assert tokenizer.decode(case["greedy_ids"]) == case["greedy_text"]
    assert tokenizer.decode(case["greedy_ids"], skip_special_tokens=True) == case["greedy_text"].replace(
        "<|im_end|>", ""
    )


@given(text=st.text(WRITTEN))
def test_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_in_a_text_are_recognised_and_in_a_literal_part_are_not(tokenizer):
    special = tokenizer.special_tokens[SPECIAL]
    assert tokenizer.encode(f"{SPECIAL}hi")[0] == special
    literal = tokenizer.encode_parts([("a", False), (SPECIAL, True), ("b", False)])
    assert special not in literal
    assert tokenizer.decode(literal) == f"a{SPECIAL}b"
    assert tokenizer.encode(SPECIAL) == [special]  # and the choice does not stick


def test_every_special_token_is_spelled_as_the_library_would_spell_it(tokenizer, tokenizer_file):
    backend = Backend.from_file(str(tokenizer_file))
    backend.encode_special_tokens = True
    for special in tokenizer.special_tokens:
        spelled = backend.encode(special, add_special_tokens=False).ids
        assert tokenizer.encode_parts([(special, True)]) == spelled


def test_a_literal_part_in_one_thread_does_not_change_what_another_encodes(tokenizer):
    special = tokenizer.special_tokens[SPECIAL]
    with ThreadPoolExecutor(1) as other:
        literal = other.submit(lambda: [tokenizer.encode_parts([(SPECIAL * 1000, True)]) for _ in range(5)])
        while not literal.done():
            assert tokenizer.encode(SPECIAL) == [special]
    assert all(special not in ids for ids in literal.result())


def test_a_long_text_is_encoded_like_any_other_while_other_threads_go_on(tokenizer):
    text = "A cat sat on the mat; 猫が座った。\n" * 5_000
    turns, over = 0, threading.Event()

    def take_turns():
        nonlocal turns
        while not over.wait(0.001):
            turns += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # now nobody loses the interpreter who does not let go of it
    try:
        with ThreadPoolExecutor(1) as other:
            other.submit(take_turns)
            for _ in range(50):  # once is enough, unless the system has something better to do than the other thread
                before = turns
                ids = tokenizer.encode(text)
                went_on = turns > before
                if went_on:
                    break
            over.set()
    finally:
        sys.setswitchinterval(interval)

    assert went_on
    assert ids == tokenizer._backend.encode(text).ids


def test_a_beginning_of_sequence_token_is_added_once_where_the_model_wants_it(tokenizer_file):
    tokenizer = Tokenizer(tokenizer_file, bos_token_id=1, add_bos=True)
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [1, *plain]
    assert tokenizer.encode(f"{SPECIAL}hi")[:2] != [1, 1]


def test_truncation_and_padding_asked_for_by_the_file_are_not_done(tokenizer_file, tmp_path):
    document = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    document["truncation"] = {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert len(Tokenizer(path).encode("one two three four five six seven eight")) == 8


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0", "model": {"type": "Nonsense"}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        Tokenizer(path)


SPOILED = {  # what the library meets with an exception, and what with a panic
    "no id for unknown text": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["z", -1.0]]}},
    "a table of characters cut short": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a pattern that backtracks without end": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    },
}


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
def test_whatever_the_library_fails_at_is_a_foreseen_error(tmp_path, spoiled):
    path = tmp_path / "tokenizer.json"
    Backend(models.BPE(vocab={"a": 0}, merges=[])).save(str(path))
    path.write_text(json.dumps(json.loads(path.read_text()) | spoiled))
    with pytest.raises((IntegrityError, UnsupportedError), match="tokenizer"):
        Tokenizer(path).encode("a" * 40 + "!")


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(UsageError, match="Unicode"):
        tokenizer.encode("a\ud800b")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_streaming_gives_the_text_that_decoding_at_once_gives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, 400), max_size=30))
@settings(max_examples=300)
def test_streaming_any_byte_level_tokens_gives_what_decoding_at_once_gives(tokenizer, ids):
    # The lowest ids are single bytes and special tokens: mostly text that is not UTF-8.
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_when_its_last_token_does(tokenizer):
    ids = tokenizer.encode("🦜")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 1) + ["🦜"]


def test_an_incomplete_character_at_the_end_is_shown_as_one(tokenizer):
    ids = tokenizer.encode("🦜")[:-1]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_a_sentencepiece_stream_keeps_spaces_between_words(sentence_piece):
    ids = [0, 1, 2, 3, 5]  # "Hello world  a ab"
    assert streamed(sentence_piece, ids) == sentence_piece.decode(ids) == "Hello world a ab"


def test_a_sentencepiece_stream_after_a_prompt_begins_with_the_space_between_them(sentence_piece):
    assert streamed(sentence_piece, [1, 5], prompt=[0]) == " world ab"


def test_a_sentencepiece_stream_keeps_the_space_after_a_token_without_text(sentence_piece):
    beginning = PIECES.index("<s>")
    assert streamed(sentence_piece, [0, beginning, 1]) == "Hello world"


@given(text=st.text(st.sampled_from("ab ,é你🦜\u200d"), max_size=20))
def test_a_sentencepiece_stream_spells_characters_from_bytes(sentence_piece, text):
    ids = sentence_piece.encode(text)
    assert streamed(sentence_piece, ids) == sentence_piece.decode(ids, skip_special_tokens=True)


def test_a_prompt_that_ends_inside_bytes_does_not_leak_into_the_stream(sentence_piece):
    prompt = sentence_piece.encode("🦜🦜🦜")
    assert streamed(sentence_piece, [1], prompt) == " world"


@pytest.mark.parametrize("lowest", [0, 120])  # words and bytes; little but bytes that are not UTF-8
def test_a_token_costs_the_decoding_of_a_few_however_long_the_text_is(tokenizer, lowest):
    ids = random.Random(0).choices(range(lowest, 273), k=2000)
    decoded = []

    class Counting:
        def decode(self, ids, skip_special_tokens):
            decoded.append(len(ids))
            return tokenizer.decode(ids, skip_special_tokens)

    stream = StreamDecoder(Counting())
    for token in ids:
        stream.push(token)
    assert max(decoded) <= 70


@pytest.mark.parametrize(
    "doubling", [normalizers.Replace("a", "aa"), normalizers.Replace(Regex("a?"), "aa")], ids=["string", "regex"]
)
def test_a_normaliser_that_makes_texts_endless_is_refused_at_load(tmp_path, doubling):
    backend = Backend(models.BPE({"a": 0}, []))
    backend.normalizer = normalizers.Sequence([normalizers.Sequence([doubling]) for _ in range(60)])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(IntegrityError, match=r"normalizer .* times longer"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_decoder_that_makes_texts_endless_is_refused_at_load(tmp_path):
    backend = Backend(models.BPE({"a": 0}, []))
    backend.decoder = decoders.Sequence([decoders.Replace("a", "aa")] * 60)
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(IntegrityError, match=r"decoder .* times longer"):
        Tokenizer(tmp_path / "tokenizer.json")
