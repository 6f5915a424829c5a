"""What happens to text before llama.cpp tokenizes it, where llama.cpp itself cannot do it.

Goes in: the keys ``inferos.tokenizer.*`` of a file that infer-os wrote. ``normalizer`` is one
Unicode normal form, ``normalizers`` a JSON list of steps as tokenizer.json has them; ``lowercase``
and ``add_prefix_space`` are flags, ``cuts`` a JSON list of pre-tokenizers, see :mod:`.text_cuts`.
``added_ids`` and ``added_flags`` say how added tokens are found, see :mod:`.added_tokens`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import GgufError, ModelLoadError
from .gguf_file import GgufArray, GgufHeader
from .normalizers import FORMS, Step, apply, lower, read_steps
from .text_cuts import Cut, apply_cuts, read_cuts

_CONTROL = 3
_LARGEST_RULES = 1 << 16
_Read = TypeVar("_Read")
_I32 = 5

_PREFIX = "inferos.tokenizer."
NORMALIZER_KEY = f"{_PREFIX}normalizer"
NORMALIZERS_KEY = f"{_PREFIX}normalizers"
LOWERCASE_KEY = f"{_PREFIX}lowercase"
PREFIX_SPACE_KEY = f"{_PREFIX}add_prefix_space"
CUTS_KEY = f"{_PREFIX}cuts"
ADDED_IDS_KEY = f"{_PREFIX}added_ids"
ADDED_FLAGS_KEY = f"{_PREFIX}added_flags"

#: The bits of a value of ``added_flags``.
LSTRIP, RSTRIP, SINGLE_WORD, NORMALIZED, SPECIAL = (1 << i for i in range(5))


@dataclass(frozen=True, slots=True)
class TextRules:
    """A Unicode normal form, and lower case for all but the ``kept`` special tokens.

    ``steps`` come before both. ``prefix_space``: text between added tokens gets a space before it,
    unless it begins with one; then ``cuts`` make parts of it, which are tokenized one by one.
    ``added``: ids and flags of the added tokens.
    """

    normalizer: str = ""
    lowercase: bool = False
    kept: Sequence[str] = ()
    steps: tuple[Step, ...] = ()
    prefix_space: bool = False
    added: tuple[tuple[int, int], ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def may_shorten(self) -> bool:
        """Whether text may shrink by more than a normal form shrinks it."""
        return bool(self.steps or self.cuts) or any(
            flags & (LSTRIP | RSTRIP) for _, flags in self.added
        )

    def apply(self, text: str, *, parse_special: bool) -> str:
        """The text as the vocabulary wants it, if added tokens are looked for afterwards."""
        text = self._steps(text)
        if not self.lowercase:
            return text
        if not parse_special or not self.kept:
            return lower(text)
        pattern = "|".join(map(re.escape, sorted(self.kept, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text)
        return "".join(part if i % 2 else lower(part) for i, part in enumerate(parts))

    def normalize(self, text: str) -> str:
        """The text as the vocabulary wants it: one without added tokens, or one token's.

        Raises:
            ModelLoadError: the file's steps make the text far too long.
        """
        text = self._steps(text)
        return lower(text) if self.lowercase else text

    def spaced(self, text: str) -> str:
        """A text between added tokens, with the space that goes before it."""
        return f" {text}" if self.prefix_space and not text.startswith(" ") else text

    def parts(self, text: str) -> list[str]:
        """The parts of a text between added tokens, each to be tokenized by itself."""
        text = self.spaced(text)
        return apply_cuts(self.cuts, text) if self.cuts else [text]

    def _steps(self, text: str) -> str:
        try:
            text = apply(self.steps, text)
        except ValueError as error:
            raise ModelLoadError(str(error)) from error
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)  # type: ignore[arg-type]
        return text


def read_text_rules(header: GgufHeader) -> TextRules:
    """The rules stated in one of our files.

    Raises:
        GgufError: an unknown normal form or step, or added tokens that do not exist.
    """
    metadata = header.metadata
    lowercase = metadata.get(LOWERCASE_KEY) is True
    kept: list[str] = []
    tokens: Any = metadata.get("tokenizer.ggml.tokens", ())
    if lowercase:
        types: Any = metadata.get("tokenizer.ggml.token_type", ())
        kept = [t for t, kind in zip(tokens, types, strict=False) if kind == _CONTROL and t]
    normalizer = str(metadata.get(NORMALIZER_KEY, ""))
    if normalizer and normalizer not in FORMS:
        raise _bad(header, f"the normalizer {normalizer!r} is unknown")
    read = _read_list(header, NORMALIZERS_KEY, read_steps)
    cuts = _read_list(header, CUTS_KEY, read_cuts)
    added = tuple(
        zip(_numbers(header, ADDED_IDS_KEY), _numbers(header, ADDED_FLAGS_KEY), strict=False)
    )
    if any(not 0 <= number < len(tokens) for number, _ in added):
        raise _bad(header, f"{ADDED_IDS_KEY} has a token above {len(tokens) - 1}")
    prefix_space = metadata.get(PREFIX_SPACE_KEY) is True
    return TextRules(normalizer, lowercase, kept, read, prefix_space, added, cuts)


def _read_list(header: GgufHeader, key: str, read: Callable[[str], _Read]) -> _Read:
    """A JSON list in a key of the file; none if it has no such key."""
    value = header.metadata.get(key, "[]")
    if not isinstance(value, str) or len(value) > _LARGEST_RULES:
        raise _bad(header, f"{key} is not a text of up to {_LARGEST_RULES} characters")
    try:
        return read(value)
    except ValueError as error:
        raise _bad(header, f"{key}: {error}") from error


def _numbers(header: GgufHeader, key: str) -> list[int]:
    """The values of an array; the arrays of ids and of flags have the same length."""
    value = header.metadata.get(key)
    other = header.metadata.get(ADDED_IDS_KEY)
    if value is None and other is None:
        return []
    if not isinstance(value, GgufArray) or value.type != _I32 or not isinstance(other, GgufArray):
        raise _bad(header, f"{key} is not an array of whole numbers")
    if len(value) != len(other):
        raise _bad(header, f"{key} has {len(value)} values for {len(other)} tokens")
    return list(value)


def _bad(header: GgufHeader, what: str) -> GgufError:
    return GgufError(f"{header.path}: bad GGUF header: {what}")
