"""A stop string ends the text wherever tokens cut it, and nothing of it is ever shown."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aicc.runtime.request import Piece, Request, StopStrings
from aicc.runtime.sampling import SamplingParams


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool, list[str]]:
    """The text that comes out, whether a stop string ended it, and each piece of it."""
    matcher = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        if stopped:
            return "".join(shown), True, shown
    shown.append(matcher.finish())
    return "".join(shown), False, shown


def first_stop(stops: list[str], text: str) -> int:
    return min((at for at in map(text.find, stops) if at >= 0), default=-1)


few_letters = st.text("ab", min_size=1, max_size=4)


@given(stops=st.lists(few_letters, max_size=4), pieces=st.lists(st.text("abc", max_size=3), max_size=12))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(stops, pieces):
    shown, stopped, _ = feed(stops, pieces)
    # The first push that completes a stop string ends the text: later characters cannot change that.
    text = next(
        (sofar for n in range(len(pieces) + 1) if first_stop(stops, sofar := "".join(pieces[:n])) >= 0),
        "".join(pieces),
    )
    at = first_stop(stops, text)
    assert stopped == (at >= 0)
    assert shown == (text[:at] if at >= 0 else text)


@given(stops=st.lists(few_letters, min_size=1, max_size=4), text=st.text("abc", max_size=20))
def test_only_what_may_begin_a_stop_string_is_held_back(stops, text):
    matcher = StopStrings(stops)
    shown = ""
    for character in text:
        piece, stopped = matcher.push(character)
        shown += piece
        if stopped:
            return
        held = matcher._held
        assert any(stop.startswith(held) for stop in stops)


def test_a_stop_string_across_three_pieces_is_held_back_and_then_dropped():
    assert feed(["<end>"], ["Hello <", "en", "d> more"]) == ("Hello ", True, ["Hello ", "", ""])


def test_a_false_beginning_comes_out_as_soon_as_it_is_one():
    assert feed(["<end>"], ["a<en", "ough"])[2] == ["a", "<enough", ""]


def scripted(tokenizer, text: str, **params) -> tuple[Request, list[Piece]]:
    """A request whose model writes exactly this text."""
    pieces: list[Piece] = []
    request = Request(
        np.array([1]),
        SamplingParams(**{"max_tokens": 50, **params}),
        vocab_size=49152,
        capacity=100,
        page_size=4,
        eos_token_ids=(2,),
        tokenizer=tokenizer,
        emit=pieces.append,
    )
    for token in tokenizer.encode(text):
        if request.finish_reason is None:
            logits = np.zeros(49152, np.float32)
            logits[token] = 1
            request.accept(logits[None], [(int(logits.argmax()), float(logits.max()))], 0.0)
    return request, pieces


def test_a_request_stops_in_the_middle_of_a_token(tokenizer):
    request, pieces = scripted(tokenizer, "One two three four", stop=["hre"])
    assert "".join(piece.text for piece in pieces) == "One two t"
    assert request.finish_reason == "stop"
    assert tokenizer.decode(request.completion_ids) == "One two three"


def test_text_held_back_comes_out_when_the_tokens_run_out(tokenizer):
    count = len(tokenizer.encode("A <e"))
    request, pieces = scripted(tokenizer, "A <e", stop=["<end>"], max_tokens=count)
    assert "".join(piece.text for piece in pieces) == "A <e"
    assert request.finish_reason == "length"


def test_text_held_back_comes_out_at_the_end_of_the_sequence(tokenizer):
    request, pieces = scripted(tokenizer, "A <e<|im_end|>", stop=["<end>"])
    assert "".join(piece.text for piece in pieces) == "A <e"
    assert (request.finish_reason, pieces[-1].token_ids) == ("stop", (2,))


def test_an_end_of_sequence_token_that_is_ignored_has_no_text(tokenizer):
    request, pieces = scripted(tokenizer, "A<|im_end|> b", ignore_eos=True)
    assert "".join(piece.text for piece in pieces) == "A b"
    assert request.finish_reason is None
