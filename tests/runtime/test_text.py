"""Token pieces to text: characters that span tokens, stop strings that span chunks."""

from __future__ import annotations

import random

import pytest

from infer_os.runtime.text import TextStream, replaced

TEXT = "Grün, 東京 👩🏽‍💻 e\u0301 done."


def fed(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """All chunks, the final one last; pushing ends at a stop, as the text loop does."""
    stream = TextStream(stops)
    chunks = []
    for piece in pieces:
        chunks.append(stream.push(piece))
        if stream.stopped:
            break
    return [*chunks, stream.finish()], stream


def pieces_of(data: bytes, draw: random.Random) -> list[bytes]:
    pieces = []
    while data:
        n = draw.randint(1, 4)
        pieces.append(data[:n])
        data = data[n:]
    return pieces


def test_every_byte_alone() -> None:
    chunks, stream = fed([bytes([b]) for b in TEXT.encode()])
    assert "".join(chunks) == TEXT
    assert all("\ufffd" not in chunk for chunk in chunks)
    assert not stream.stopped


def test_a_character_appears_with_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([b])) for b in "😀".encode()] == ["", "", "", "😀"]


def test_text_without_stops_is_never_held() -> None:
    stream = TextStream()
    assert stream.push(b"abc") == "abc"
    assert stream.push(b"") == ""
    assert stream.finish() == ""


def test_a_cut_character_at_the_end_becomes_a_replacement() -> None:
    chunks, _ = fed([b"a", "é".encode()[:1]])
    assert chunks == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    "data", [b"\xff", b"a\x80b", b"\xe6\x9dx", b"\xc3\xc3\xa9", b"\xed\xa0\x80", bytes(range(256))]
)
def test_invalid_bytes_read_as_a_whole_decode_reads_them(data: bytes) -> None:
    chunks, _ = fed([bytes([b]) for b in data])
    assert "".join(chunks) == data.decode("utf-8", "replace")


def test_a_stop_string_in_one_piece() -> None:
    chunks, stream = fed([b"yes", b" no STOP more"], ("STOP",))
    assert "".join(chunks) == "yes no "
    assert stream.stopped


def test_a_stop_string_across_pieces() -> None:
    stream = TextStream(("\nUser:",))
    assert stream.push(b"hi\nU") == "hi"
    assert stream.push(b"se") == ""
    assert not stream.stopped
    assert stream.push(b"r: more") == ""
    assert stream.stopped
    assert stream.finish() == ""


def test_nothing_comes_after_a_stop() -> None:
    stream = TextStream(("x",))
    assert stream.push(b"ax") == "a"
    assert stream.push(b"more") == ""
    assert stream.finish() == ""


def test_a_partial_stop_is_released_once_it_is_none() -> None:
    stream = TextStream(("STOP",))
    assert stream.push(b"a ST") == "a "
    assert stream.push(b"ART") == "START"


def test_a_partial_stop_is_released_at_the_end() -> None:
    stream = TextStream(("STOP",))
    assert stream.push(b"a STO") == "a "
    assert stream.finish() == "STO"
    assert not stream.stopped


def test_a_partial_stop_inside_a_partial_stop() -> None:
    stream = TextStream(("aab",))
    assert stream.push(b"aa") == ""
    assert stream.push(b"a") == "a"
    assert stream.push(b"b") == ""
    assert stream.stopped


def test_the_longest_partial_stop_is_held() -> None:
    stream = TextStream(("bc!", "abcd"))
    assert stream.push(b"xabc") == "x"
    assert stream.push(b"!") == "a"
    assert stream.stopped


def test_the_stop_that_is_complete_first_counts() -> None:
    for pieces in ([b"abc"], [b"ab", b"c"], [b"a", b"b", b"c"]):
        chunks, stream = fed(pieces, ("abc", "b"))
        assert "".join(chunks) == "a"
        assert stream.stopped


def test_of_stops_that_end_together_the_longer_counts() -> None:
    for stops in (("b", "ab"), ("ab", "b")):
        for pieces in ([b"xab"], [b"xa", b"b"]):
            assert "".join(fed(pieces, stops)[0]) == "x"


def test_a_stop_string_of_many_bytes_and_a_cut_character() -> None:
    chunks, stream = fed([bytes([b]) for b in "a東京b".encode()], ("東京",))
    assert "".join(chunks) == "a"
    assert stream.stopped


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """What is before the stop string that is complete first, character by character."""
    for end in range(1, len(text) + 1):
        ended = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(ended)], True
    return text, False


def test_the_cut_of_the_pieces_never_matters() -> None:
    draw = random.Random(4)
    stopped = 0
    for _ in range(3000):
        letters = draw.choice(("ab", "abc", "aé", "a東\n"))
        text = "".join(draw.choice(letters) for _ in range(draw.randint(0, 12)))
        stops = tuple(
            "".join(draw.choice(letters) for _ in range(draw.randint(1, 4)))
            for _ in range(draw.randint(0, 3))
        )
        chunks, stream = fed(pieces_of(text.encode(), draw), stops)
        assert ("".join(chunks), stream.stopped) == expected(text, stops), (text, stops)
        stopped += stream.stopped
    assert 500 < stopped < 2500


def test_a_replaced_text_may_be_cut_anywhere() -> None:
    draw = random.Random(5)
    for _ in range(1000):
        text = "".join(draw.choice(("a", "<", "N", "L", ">", "<NL>")) for _ in range(8))
        chunks = [piece.decode() for piece in pieces_of(text.encode(), draw)]
        assert "".join(replaced(chunks, "<NL>", "\n")) == text.replace("<NL>", "\n"), chunks


def test_what_is_certain_is_not_held_back() -> None:
    assert list(replaced(["a", "b<", "N", "x"], "<NL>", "\n")) == ["a", "b", "<Nx"]
    assert list(replaced(["a\n"], "\n", "\n")) == ["a\n"]
