"""Patterns of module names: what Python's ``re`` finds for PEFT, in a time that has a bound."""

from __future__ import annotations

import random
import re

import pytest

from infer_os.convert.module_patterns import ModulePatterns

NAMES = [
    f"{prefix}.{layer}.{module}"
    for prefix in ("transformer.h", "gpt_neox.layers")
    for layer in (0, 1, 11, 12)
    for module in ("attn.q_proj", "attention.query_key_value", "mlp.dense_4h_to_h")
]


def peft(patterns: list[str], name: str) -> str | None:
    """PEFT's own rule."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)


@pytest.mark.parametrize(
    "patterns",
    [
        ["q_proj"],
        ["attn.q_proj", "q_proj"],
        ["h.1.attn.q_proj", "h.11.attn.q_proj"],
        ["^transformer.h.0.attn.q_proj", "^h.0.attn.q_proj"],
        [r"h\.(0|1)\.attn\.q_proj", r"layers\.\d+\.mlp\..*"],
        [r".*\.mlp\.dense_\dh_to_h", "query_key_value$"],
        [r"(?:attn|attention)\.\w+", "[a-z_]+"],
        ["_proj", "proj", "", "."],
        ["h.[0-9]+.attn.(q|k|v)_proj"],
    ],
    ids=lambda patterns: patterns[0],
)
def test_what_peft_finds(patterns: list[str]) -> None:
    read = ModulePatterns(patterns)
    found = [read.first(name) for name in NAMES]
    assert found == [peft(patterns, name) for name in NAMES]


def random_pattern(draw: random.Random, depth: int = 0) -> str:
    text = ""
    for _ in range(draw.randint(1, 4)):
        if depth < 2 and draw.random() < 0.25:
            choices = (random_pattern(draw, depth + 1) for _ in range(draw.randint(1, 3)))
            text += f"{draw.choice(['(', '(?:'])}{'|'.join(choices)})"
        else:
            text += draw.choice([*"aabh1.^$_-", r"\.", r"\d", r"\w", "[ab]", "[^a-b]", "[-a]"])
        if text[-1] not in "^$" and draw.random() < 0.3:
            text += draw.choice(["*", "+", "?", "*?", "+?"])
    return text


def test_random_patterns() -> None:
    draw = random.Random(5)
    n_found = 0
    for _ in range(3000):
        patterns = [random_pattern(draw) for _ in range(draw.randint(1, 3))]
        if max(map(len, patterns)) > 200:
            continue
        name = "".join(draw.choices("ab1h_-..", k=draw.randint(0, 8)))
        found = ModulePatterns(patterns).first(name)
        assert found == peft(patterns, name), (patterns, name)
        n_found += found is not None
    assert n_found > 300


@pytest.mark.parametrize(
    "pattern",
    ["(a|a)" * 38 + "b", "(a+)+b", r"\w+" * 60 + "b", "(.*)*" * 40, "((((a*)*)*)*)*b", "(|a)" * 50],
)
def test_patterns_that_keep_backtracking_busy(pattern: str) -> None:
    """Python's ``re`` would not come back."""
    read = ModulePatterns([pattern])
    found = [read.first("a" * n + "-") for n in range(60)]
    assert set(found) == ({pattern} if pattern.startswith("(.*)*") else {None})


@pytest.mark.parametrize(
    ("pattern", "at"),
    [("(", 2), (")", 1), ("a**", 3), ("*", 1), ("[z-a]", 1), ("[", 1), ("a{2}", 2), ("\\", 1),
     ("(?=a)", 2), ("(?P<x>a)", 2), ("a++", 3), ("^*", 2), (r"(a)\1", 4), ("a b", 2),
     ("(" * 30 + ")" * 30, 22)],
)  # fmt: skip
def test_what_is_not_understood(pattern: str, at: int) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(repr(pattern))} from letter {at}"):
        ModulePatterns(["a", pattern])


def test_too_many() -> None:
    with pytest.raises(ValueError, match="more than 200 letters"):
        ModulePatterns(["a" * 201])
    for patterns in (["a"] * 5000, ["a" * 200] * 400, ["a*" * 100] * 6):
        with pytest.raises(ValueError, match="are too many"):
            ModulePatterns(patterns)
    # one for each module of a large model
    names = [f"transformer.h.{i}.{m}" for i in range(96) for m in ("attn.q", "attn.v", "mlp.up")]
    read = ModulePatterns(names)
    assert [read.first(name) for name in names] == [peft(names, name) for name in names]
