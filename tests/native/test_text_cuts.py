"""Cuts before llama.cpp's split: the parts that the ``tokenizers`` library makes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from infer_os.native.text_cuts import MOST_CUTS, apply_cuts, read_cuts

_SIGNS = r"[\(\)\[\]]|([!\#&'\*\+,\-\./:;<=>\?\\\^_`\|\~])\1*"
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "digits": (
        pre_tokenizers.Digits(individual_digits=True),
        {"type": "Digits", "individual_digits": True},
    ),
    "removed": (
        pre_tokenizers.Split("ab", "removed"),
        {"type": "Split", "pattern": {"String": "ab"}, "behavior": "Removed", "invert": False},
    ),
    "isolated": (
        pre_tokenizers.Split("\n", "isolated"),
        {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False},
    ),
    "signs": (
        pre_tokenizers.Split(Regex(_SIGNS), "isolated"),
        {"type": "Split", "pattern": {"Regex": _SIGNS}, "behavior": "Isolated", "invert": False},
    ),
}  # fmt: skip


def _texts() -> list[str]:
    draw = random.Random(3)
    letters = "ab1²½٣Ⅷ一\n .-!#&~|()[]\\^'é"
    return ["".join(draw.choices(letters, k=draw.randint(0, 30))) for _ in range(2000)]


@pytest.mark.parametrize("name", [*CASES, "all"])
def test_the_parts_of_the_library(name: str) -> None:
    chosen = list(CASES.values()) if name == "all" else [CASES[name]]
    oracle = pre_tokenizers.Sequence([step for step, _ in chosen])
    cuts = read_cuts(json.dumps([entry for _, entry in chosen]))
    for text in _texts():
        expected = [part for part, _ in oracle.pre_tokenize_str(text)]
        assert apply_cuts(cuts, text) == expected, text


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[1]", '[{"type": "Digits", "individual_digits": false}]', "[[]]",
        '[{"type": "Split", "pattern": {"String": ""}, "behavior": "Removed"}]',
        '[{"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}]',
        '[{"type": "Split", "pattern": {"Regex": "[a-z&&[^b]]"}, "behavior": "Isolated"}]',
        json.dumps([CASES["digits"][1]] * (MOST_CUTS + 1)), "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a list|cannot be expressed|nested"):
        read_cuts(text)
