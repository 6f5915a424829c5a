"""Cuts of a text that go before llama.cpp's own split, as in the ``tokenizers`` library.

Goes in: steps of a tokenizer.json's pre-tokenizer. Comes out: functions from a text to its parts,
or an error that names the step that cannot be expressed. llama.cpp then splits and merges every
part by itself. Follows tokenizers/src/pre_tokenizers of https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Cut = Callable[[str], Iterable[str]]

MOST_CUTS = 16
_LONGEST_PATTERN = 256
#: Alternatives of one sign of a set, or of one and its repeats: they mean the same to Oniguruma and
#: to Python.
_SET = r"\[(?:\\[^\w\s]|[!-/:-@_`{-~])+\]"
_PATTERN = re.compile(rf"(?:{_SET}|\({_SET}\)\\1\*)(?:\|(?:{_SET}|\({_SET}\)\\1\*))*", re.ASCII)


def read_cuts(text: str) -> tuple[Cut, ...]:
    """The cuts of a JSON list, each as tokenizer.json has it.

    Raises:
        ValueError: it is malformed, or a cut is unknown.
    """
    try:
        entries = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(entries, list) or len(entries) > MOST_CUTS:
        raise ValueError(f"not a list of up to {MOST_CUTS} cuts")
    return tuple(map(read_cut, entries))


def read_cut(entry: Any) -> Cut:
    """One cut.

    Raises:
        ValueError: it is unknown; the message names it.
    """
    match entry:
        case {"type": "Digits", "individual_digits": True}:
            return _digits
        case {
            "type": "Split", "behavior": "Isolated" | "Removed" as behavior,
            "pattern": {"String": str(old)},
        } if 0 < len(old) <= _LONGEST_PATTERN and not entry.get("invert"):  # fmt: skip
            return _split(re.compile(re.escape(old)), keeps=behavior == "Isolated")
        case {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": str(pattern)}} if (
            len(pattern) <= _LONGEST_PATTERN and _PATTERN.fullmatch(pattern)
        ) and not entry.get("invert"):
            return _split(re.compile(_quoted(pattern)), keeps=True)
    kind = entry.get("type") if isinstance(entry, dict) else entry
    by = entry.get("pattern") if isinstance(entry, dict) else None
    of = f" of {by!r}" if by else ""
    raise ValueError(f"the pre-tokenizer {kind!r}{of} cannot be expressed")


def apply_cuts(cuts: Iterable[Cut], text: str) -> list[str]:
    """The parts of a text after all cuts, without empty ones."""
    parts = [text]
    for cut in cuts:
        parts = [part for whole in parts for part in cut(whole) if part]
    return parts


def _quoted(pattern: str) -> str:
    """The pattern without what Python's ``re`` warns of: signs that may come to mean sets."""
    return re.sub(r"(?<!\\)([&~|#-])(?=[^\[\]()]*\])", r"\\\1", pattern)


def _digits(text: str) -> Iterator[str]:
    """Every number of one letter (Unicode's N) is a part, as is what lies between."""
    start = 0
    for i, letter in enumerate(text):
        if unicodedata.category(letter)[0] == "N":
            yield text[start:i]
            yield letter
            start = i + 1
    yield text[start:]


def _split(pattern: re.Pattern[str], *, keeps: bool) -> Cut:
    def cut(text: str) -> Iterator[str]:
        start = 0
        for found in pattern.finditer(text):
            yield text[start : found.start()]
            if keeps:
                yield found[0]
            start = found.end()
        yield text[start:]

    return cut
