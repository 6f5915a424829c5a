"""What happens to text before llama.cpp cuts it into tokens, which llama.cpp itself cannot do."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import GgufError
from .gguf_file import GgufHeader

_CONTROL = 3


@dataclass(frozen=True, slots=True)
class TextRules:
    """A Unicode normal form, and lower case for all but the ``kept`` special tokens."""

    normalizer: str = ""
    lowercase: bool = False
    kept: Sequence[str] = ()

    def apply(self, text: str, *, parse_special: bool) -> str:
        """The text as the vocabulary wants it."""
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)  # type: ignore[arg-type]
        if not self.lowercase:
            return text
        if not parse_special or not self.kept:
            return _lower(text)
        pattern = "|".join(map(re.escape, sorted(self.kept, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text)
        return "".join(part if i % 2 else _lower(part) for i, part in enumerate(parts))


def read_text_rules(header: GgufHeader) -> TextRules:
    """The rules that a file of ours states.

    Raises:
        GgufError: an unknown normal form.
    """
    metadata = header.metadata
    lowercase = metadata.get("inferos.tokenizer.lowercase") is True
    kept: list[str] = []
    if lowercase:
        tokens: Any = metadata.get("tokenizer.ggml.tokens", ())
        types: Any = metadata.get("tokenizer.ggml.token_type", ())
        kept = [t for t, kind in zip(tokens, types, strict=False) if kind == _CONTROL and t]
    normalizer = str(metadata.get("inferos.tokenizer.normalizer", ""))
    if normalizer not in ("", "NFC", "NFD", "NFKC", "NFKD"):
        raise GgufError(f"{header.path}: bad GGUF header: the normalizer {normalizer!r} is unknown")
    return TextRules(normalizer, lowercase, kept)


def _lower(text: str) -> str:
    # letter by letter, as transformers does: a final sigma is no other than the rest
    return "".join(letter.lower() for letter in text)
