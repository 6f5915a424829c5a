"""Steps that change a text before it is cut into tokens, as in the ``tokenizers`` library.

Goes in: the steps of a tokenizer.json's normalizer. Comes out: functions from text to text, or an
error that names the step that cannot be expressed. Follows tokenizers/src/normalizers of
https://github.com/huggingface/tokenizers. Characters that are in one library's Unicode tables
but too new for the other's may differ.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

Step = Callable[[str], str]
_Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

FORMS: tuple[_Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")
MOST_STEPS = 64
#: Most characters of a text that a step inserts, and of a pattern.
_LONGEST_TEXT = 256

#: Unicode's White_Space, which is what Rust strips; Python's has four more separators.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)
_NMT: dict[int, str | None] = {
    **dict.fromkeys([*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]),
    **dict.fromkeys(
        [9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD],
        " ",
    ),
}

#: A pattern that means the same to Oniguruma and to Python: characters, sets, and repeats of them.
_ATOM = re.compile(
    r"""(?P<space>\\[sS])
    | (?P<escape>\\[^\w\s])
    | (?P<control>\\[ntr])
    | (?P<set>\[\^?(?:\\s|\\[ntr]|[A-Za-z0-9]-[A-Za-z0-9]|[^\\\[\]^&~|\-])+\])
    | (?P<plain>[^\\\[\](){}|*+?^$.])""",
    re.VERBOSE | re.ASCII,
)
_REPEAT = re.compile(r"[*+?]|\{\d{1,3}(?:,\d{0,3})?\}", re.ASCII)
#: Most combinations of lengths that a pattern's bounded repeats may have.
_MOST_WAYS = 64
_UNBOUNDED = re.compile(r"[*+]|\{\d+,\}", re.ASCII)


def read_steps(text: str) -> tuple[Step, ...]:
    """The steps of a JSON list, each as tokenizer.json has it.

    Raises:
        ValueError: it is malformed, or a step is unknown.
    """
    try:
        entries = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(entries, list) or len(entries) > MOST_STEPS:
        raise ValueError(f"not a list of up to {MOST_STEPS} steps")
    return tuple(map(read_step, entries))


def read_step(entry: Any) -> Step:
    """One step.

    Raises:
        ValueError: it is unknown; the message names it.
    """
    kind = entry.get("type") if isinstance(entry, dict) else entry
    match entry:
        case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form}:
            return _form_step(form)
        case {"type": "Lowercase"}:
            return lower
        case {"type": "StripAccents"}:
            return _strip_accents
        case {"type": "Nmt"}:
            return lambda text: text.translate(_NMT)
        case {"type": "Strip", "strip_left": bool(left), "strip_right": bool(right)}:
            return _strip_step(left, right)
        case {"type": "Prepend", "prepend": str(before)} if 0 < len(before) <= _LONGEST_TEXT:
            return lambda text: text and before + text
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
            0 < len(old) <= _LONGEST_TEXT and len(new) <= _LONGEST_TEXT
        ):
            return lambda text: text.replace(old, new)
        case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": str(new)} if (
            len(new) <= _LONGEST_TEXT
        ):
            found = _compile(pattern)
            return lambda text: found.sub(lambda _: new, text)
        case {"type": "Replace", "pattern": pattern}:
            raise ValueError(f"the normalizer 'Replace' of {pattern!r} cannot be expressed")
    raise ValueError(f"the normalizer {kind!r} cannot be expressed")


def is_form(entry: Any) -> bool:
    """Whether a step is one of Unicode's normal forms."""
    return isinstance(entry, dict) and entry.get("type") in FORMS


def lower(text: str) -> str:
    """Lower case letter by letter: a final sigma is treated like any other."""
    return "".join(letter.lower() for letter in text)


def apply(steps: Sequence[Step], text: str) -> str:
    """The text after all steps.

    Raises:
        ValueError: they write far more than they read.
    """
    most = 64 * len(text) + (1 << 16)
    for step in steps:
        text = step(text)
        if len(text) > most:
            raise ValueError(f"the normalizer makes {len(text)} characters of a short text")
    return text


def _form_step(form: _Form) -> Step:
    return lambda text: unicodedata.normalize(form, text)


def _strip_step(left: bool, right: bool) -> Step:
    def strip(text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if left else text
        return text.rstrip(WHITE_SPACE) if right else text

    return strip


def _strip_accents(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c)[0] != "M")


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern for Python's ``re``.

    Raises:
        ValueError: it may mean something else there, or would match nothing.
    """
    refusal = ValueError(f"the normalizer 'Replace' of the pattern {pattern!r} cannot be expressed")
    written, at, n_unbounded, n_ways = "", 0, 0, 1
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        if atom is None or len(pattern) > _LONGEST_TEXT:
            raise refusal
        if atom["space"]:
            written += f"[{'^' if atom[0] == chr(92) + 'S' else ''}{WHITE_SPACE}]"
        elif atom["set"]:
            written += atom[0].replace(r"\s", WHITE_SPACE)
        else:
            written += re.escape(atom[0]) if atom["plain"] else atom[0]
        at = atom.end()
        repeat = _REPEAT.match(pattern, at)
        if repeat:
            written += repeat[0]
            at = repeat.end()
            n_unbounded += bool(_UNBOUNDED.fullmatch(repeat[0]))
            n_ways *= _ways(repeat[0])
            if _REPEAT.match(pattern, at):  # lazy and possessive ones
                raise refusal
    try:
        found = re.compile(written)
    except (re.error, OverflowError) as error:
        raise refusal from error
    # repeats can be tried in all combinations, whose number is a product
    if n_unbounded > 1 or n_ways > _MOST_WAYS or found.fullmatch(""):
        raise refusal
    return found


def _ways(repeat: str) -> int:
    """How many lengths a repeat can have, if it is bounded."""
    least, comma, most = repeat[1:-1].partition(",")
    if repeat == "?":
        return 2
    return int(most) - int(least) + 1 if comma and most else 1
