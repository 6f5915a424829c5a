"""Words at a terminal's edge: what a person sees, whatever the pieces, the script and the width."""

from __future__ import annotations

import unicodedata

import pyte
import pytest

from infer_os.terminal.wrapping import WordWrap, folded

ENGLISH = "It is a truth universally acknowledged, that a single man must be in want."
CODE = "def f(x):\n    return x + 1\n\tdone"
URL = "See https://example.org/a/very/long/path/without/blanks now"
JAPANESE = "吾輩は猫である。名前はまだ無い。"
MIXED = "The word 猫 means cat, and 犬 means dog; キロ too."
ACCENTS = "cafe\u0301 de\u0301ja\u0300 vu re\u0301sume\u0301 nai\u0308ve"


def shown(text: str, columns: int, size: int) -> list[str]:
    """The lines of a terminal after the text came in pieces of a size."""
    screen = pyte.Screen(columns, 60)
    screen.set_mode(pyte.modes.LNM)  # as the driver of a terminal does it
    stream = pyte.Stream(screen)
    wrap = WordWrap(lambda: columns)
    for at in range(0, len(text), size):
        stream.feed(wrap.push(text[at : at + size]))
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n").split("\n")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        (ENGLISH, 20, ["It is a truth", "universally", "acknowledged, that a", "single man must be",
                       "in want."]),
        (ENGLISH, 100, [ENGLISH]),
        ("abcd efgh ijkl", 4, ["abcd", "efgh", "ijkl"]),
        ("abcd  efgh", 5, ["abcd", "efgh"]),
        ("abcd   efgh", 4, ["abcd", "efgh"]),
        (CODE, 40, ["def f(x):", "    return x + 1", "        done"]),
        ("one\n\n\n  two", 10, ["one", "", "", "  two"]),
        (URL, 20, ["See", "https://example.org/", "a/very/long/path/wit", "hout/blanks now"]),
        (JAPANESE, 10, ["吾輩は猫で", "ある。名前", "はまだ無", "い。"]),
        (MIXED, 12, ["The word 猫", "means cat,", "and 犬 means", "dog; キロ", "too."]),
        (MIXED, 13, ["The word 猫", "means cat,", "and 犬 means", "dog; キロ", "too."]),
    ],
)  # fmt: skip
def test_words_stay_whole(text: str, columns: int, lines: list[str], size: int) -> None:
    found = shown(text, columns, size)
    # pyte keeps an empty cell behind a wide letter
    assert [line.rstrip() for line in found] == lines


@pytest.mark.parametrize("columns", [4, 9, 17, 30])
@pytest.mark.parametrize("text", [ENGLISH, URL, JAPANESE, MIXED, ACCENTS])
def test_nothing_is_lost_and_pieces_do_not_matter(text: str, columns: int) -> None:
    whole = shown(text, columns, 1000)
    found = unicodedata.normalize("NFC", "".join(whole).replace(" ", ""))
    assert found == unicodedata.normalize("NFC", text.replace(" ", ""))
    for size in (1, 2, 3, 5):
        assert shown(text, columns, size) == whole


def test_every_piece_shows_at_once() -> None:
    wrap = WordWrap(lambda: 12)
    screen = pyte.Screen(12, 5)
    screen.set_mode(pyte.modes.LNM)
    stream = pyte.Stream(screen)
    text = "slow models show every letter"
    for at, letter in enumerate(text, 1):
        stream.feed(wrap.push(letter))
        seen = "".join(line.strip() for line in screen.display).replace(" ", "")
        assert seen == text[:at].replace(" ", "")


def test_a_family_is_one_letter_of_two_columns() -> None:
    wrap = WordWrap(lambda: 8)
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    # 4 + 1 + 2 columns fit; no line break is written
    assert "".join(wrap.push(c) for c in f"abcd {family}") == f"abcd {family}"
    assert "".join(wrap.push(c) for c in family).startswith("\n")


def test_a_resize_moves_no_word_that_may_be_elsewhere() -> None:
    columns = 20
    wrap = WordWrap(lambda: columns)
    assert wrap.push("It is acknow") == "It is acknow"
    columns = 10
    # where "acknow" is now, only the terminal knows
    assert wrap.push("ledged by you") == "ledged by you"
    # from the next line on it is known again
    assert wrap.push("\nall, and sundry") == "\nall, and s\r\x1b[9C\x1b[K\nsundry"


@pytest.mark.parametrize(
    ("line", "columns", "lines"),
    [
        ("Forgotten: at him, 你好 😀 and said,", 22, ["Forgotten: at him, 你", "好 😀 and said,"]),
        ("Forgotten: 吾輩は猫である。", 20, ["Forgotten: 吾輩は猫", "である。"]),
        ("Forgotten: 吾輩は猫。", 19, ["Forgotten: 吾輩は", "猫。"]),
        ("one two  three", 7, ["one two", "three"]),
        ("see /a/path/as/long/as/this one", 10, ["see", "/a/path/as/long/as/this", "one"]),
        ("", 10, [""]),
        ("  two  ", 4, ["two"]),
    ],
)
def test_a_note_is_broken_by_columns_not_letters(line: str, columns: int, lines: list[str]) -> None:
    assert folded(line, columns) == lines
