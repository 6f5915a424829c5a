"""Find added tokens in a text as the ``tokenizers`` library does: the leftmost, then the longest.

llama.cpp looks for one token after the other, the longest first, wherever it stands
(``tokenizer_st_partition`` in src/llama-vocab.cpp): of two that overlap, it may take the later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import llama_cpp

from .gguf_file import GgufHeader

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
# llama.cpp reads tokens that are spelled so as special, whatever their type says
_LOOKS_SPECIAL = ("<", "[", "_<", "▁<")


class AddedTokens:
    """The added tokens of a byte-level vocabulary, by their text."""

    def __init__(self, special: dict[str, int], plain: dict[str, int]) -> None:
        self._special, self._plain = special, plain
        self._patterns = {flag: self._pattern(flag) for flag in (False, True)}

    @classmethod
    def read(cls, header: GgufHeader, vocab: object) -> AddedTokens:
        """The tokens of a file; ``vocab`` is its ``llama_vocab *``.

        Other tokenizers than byte-level BPE have none here: llama.cpp finds theirs.
        """
        special: dict[str, int] = {}
        plain: dict[str, int] = {}
        metadata = header.metadata
        if metadata.get("tokenizer.ggml.model") == "gpt2":
            tokens = metadata["tokenizer.ggml.tokens"]
            types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
            for i, (text, kind) in enumerate(zip(tokens, types, strict=False)):
                if not text or (kind == _NORMAL and not text.startswith(_LOOKS_SPECIAL)):
                    continue
                attributes = llama_cpp.llama_vocab_get_attr(vocab, i)
                if attributes & (
                    llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
                ):
                    special[text] = i
                elif attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED:
                    plain[text] = i
        return cls(special, plain)

    def split(self, text: str, *, parse_special: bool) -> Iterator[str | int]:
        """The text in order: added tokens as their ids, what lies between as it is.

        ``parse_special``: whether special tokens are looked for as well.
        """
        pattern = self._patterns[parse_special]
        at = 0
        for found in pattern.finditer(text) if pattern else ():
            if found.start() > at:
                yield text[at : found.start()]
            word = found[0]
            yield self._plain[word] if word in self._plain else self._special[word]
            at = found.end()
        if at < len(text):
            yield text[at:]

    def _pattern(self, parse_special: bool) -> re.Pattern[str] | None:
        words = [*self._plain, *(self._special if parse_special else ())]
        # the first alternative that matches is taken
        words.sort(key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words))) if words else None
