"""GBNF is read within bounds, and texts follow it exactly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import BUNDLED, Converter
from random_schemas import Dice

from infer_os.native.errors import GrammarError
from infer_os.native.gbnf import lark_of_gbnf
from infer_os.native.grammar import compiled
from infer_os.native.model import LlamaModel
from infer_os.runtime.settings import SamplingSettings

DOUBLING = "root ::= r0\n" + "".join(f'r{i} ::= r{i + 1} | r{i + 1} "a"\n' for i in range(40))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("root ::= [z-a]+ [^]", "line 1 .*'z' to 'a' goes from high to low"),
        ('root ::= "a"{5,2}', r"\{5,2\}: the second count is less"),
        ('root ::= "a"{9999999}', "more than 100000 times"),
        ('root ::= "a"{1000000000}', "more than 100000 times"),
        ('root ::= "a"{' + "9" * 5000 + "}", "expected {n}"),
        ('root ::= "a"{\u0663}', "expected {n}"),
        ('root ::= "a"{1 2}', "expected {n}"),
        ("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "more than 100 nested brackets"),
        ("".join(f"r{i} ::= r{i + 1}\n" for i in range(10_000)), "more than 5000 rules"),
        ("root ::= x\n" + "#" * 400_000, "at most 300000"),
        ('root ::= x\nx ::= "a" x', "never ends"),
        ('root ::= "a"\nroot ::= "b"', "line 2 .*twice"),
        ('root ::= "a"\nx ::= (', "a bracket is open"),
        ('root ::= "\\q"', "not an escape"),
        ('root ::= "\\uD800"', "not a character"),
        ("root ::= []", "without characters"),
        ("root ::= * ", "nothing before it"),
        ("root ::= <think>", "tokens in a grammar"),
        ("root ::= 'a'", 'unexpected "\'"'),
        ('root = "a"', "expected ::="),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(GrammarError, match=complaint) as caught:
        lark_of_gbnf(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.fixture(scope="module")
def dice(converted: Converter) -> Dice:
    path: Path = converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")
    return Dice(LlamaModel(path, vocab_only=True).vocab)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('root ::= "a" ( "" | "b" )* "."', r"ab*\."),
        ('root ::= "a"? [^a-z"]{2,3} . # any', r'a?[^a-z"]{2,3}.'),
        (
            'root ::= "ab"{2} | x\nx ::=\n  "\\x41\\u00e9\\U0001F600" |\n  [\\]x-]',
            "abab|Aé😀|[]x-]",
        ),
        ('root ::= "a" "b" "c" | "ab" "d"', "abc|abd"),
        # rules over characters: no greedy rule takes the x of another
        ('root ::= "(" root ")" | name "x"\nname ::= [a-z]{0,4}', r"\(*[a-z]{0,4}x\)*"),
        ('root ::= list\nlist ::= "a" | list "," "a"', "a(,a)*"),
        (DOUBLING + 'r40 ::= "b"', "ba{0,40}"),
        ('root ::= ("a"{300}){300} | root "b" | "c"', "(a{90000}|c)b*"),
    ],
)
def test_texts_follow_it(text: str, expected: str, dice: Dice) -> None:
    finished = 0
    for seed in range(12):
        drawn = dice.draw(SamplingSettings(1.0, grammar=text), seed, most=60)
        if drawn.finished:
            finished += 1
            assert re.fullmatch(expected, drawn.text, re.DOTALL), drawn.text
    assert finished >= 6


def test_every_alternative_comes(dice: Dice) -> None:
    sampling = SamplingSettings(1.0, grammar='root ::= "a" "b" "c" | "ab" "d" | "(" root ")"')
    texts = {dice.draw(sampling, seed).text.strip("()") for seed in range(60)}
    assert texts == {"abc", "abd"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("(?=a)b", "look-ahead"),
        ("a\\b", ""),
        ("((a{1000}){1000}){1000}", "more than 100000 "),
        ("(" * 200, "more than 100 nested brackets"),
        ("x{5,2}", "repetition"),
        ("x{" + "9" * 5000 + "}", "more than 100000 "),
        ("x{0,0" + "9" * 5000 + "}", "more than 100000 "),
        (r"[^\x00-\x{10ffff}]", "no text follows it"),
        (r"\x{110000}", ""),
    ],
)
def test_a_bad_expression_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(GrammarError, match=f"regular expression.*{complaint}") as caught:
        compiled("regex", text)
    said = str(caught.value)
    assert "\n" not in said and "non-verbose" not in said and len(said) < 400


def test_an_expression_is_of_the_whole_text(dice: Dice) -> None:
    for text in (r"[0-9]{3}-[a-f]+", r"^(yes|no)$", r"\w+@\w+\.(org|com)"):
        for seed in range(8):
            drawn = dice.draw(SamplingSettings(1.0, regex=text), seed, most=80)
            if drawn.finished:
                assert re.fullmatch(text, drawn.text), drawn.text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "a\udcff"),
        ("grammar", 'root ::= "\udcff"'),
        ("json_schema", '{"const": "\udcff"}'),
    ],
)
def test_what_is_no_utf8_is_one_line(kind: str, text: str) -> None:
    with pytest.raises(GrammarError, match="half of a surrogate pair"):
        compiled(kind, text)
