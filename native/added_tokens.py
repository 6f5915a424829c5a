"""Find added tokens in a text as the ``tokenizers`` library does: the leftmost, then the longest.

llama.cpp looks for one token after another, the longest first, anywhere in the text
(``tokenizer_st_partition`` in src/llama-vocab.cpp): of two that overlap, it may take the later one.
Nor does it know the library's flags, which our files have (``AddedVocabulary`` in
tokenizers/src/tokenizer/added_vocabulary.rs of https://github.com/huggingface/tokenizers): tokens
that are not "normalized" are found in the original text; the parts between are normalized, and the
others are found there, in their normalized spelling. "lstrip" and "rstrip" swallow white space, and
"single_word" allows no letter next to the token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import llama_cpp

from .gguf_file import GgufHeader
from .normalizers import WHITE_SPACE
from .text_rules import LSTRIP, NORMALIZED, RSTRIP, SINGLE_WORD, SPECIAL, TextRules

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
_HIDDEN_ATTRIBUTES = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
# llama.cpp treats tokens with this spelling as special, whatever their type
_LOOKS_SPECIAL = tuple(text.encode() for text in ("<", "[", "_<", "▁<"))
#: Tokenizers whose added tokens are found here; llama.cpp finds those of the others.
_MODELS = ("gpt2", "t5")
# circled and squared letters, which are symbols but alphabetic; the joiners
_FURTHER_LETTERS = re.compile(
    "[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]"
)


@dataclass(frozen=True, slots=True)
class _Token:
    """An added token; ``flags`` as in the file."""

    id: int
    text: str
    flags: int


class AddedTokens:
    """The added tokens of a vocabulary, by their text."""

    def __init__(self, tokens: Iterable[_Token], rules: TextRules) -> None:
        """Take the tokens in any order; without flags in the file, all are found at the end."""
        self._rules = rules
        self._flagged = bool(rules.added)
        tokens = sorted(tokens, key=lambda token: (not token.flags & SPECIAL, token.id))
        first = [token for token in tokens if self._flagged and not token.flags & NORMALIZED]
        second = [token for token in tokens if not self._flagged or token.flags & NORMALIZED]
        self._first = _Search({}, first)
        spelled = {}
        if self._flagged:
            spelled = {token.id: rules.normalize(token.text) for token in second}
        self._second = _Search(spelled, second)

    @classmethod
    def read(cls, header: GgufHeader, vocab: object, rules: TextRules) -> AddedTokens:
        """The tokens of a file; ``vocab`` is its ``llama_vocab *``.

        Only byte-level BPE and unigram have any: llama.cpp finds those of other tokenizers.
        """
        metadata = header.metadata
        if metadata.get("tokenizer.ggml.model") not in _MODELS:
            return cls((), rules)
        texts = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
        stated = dict(rules.added)
        tokens = []
        for i, (raw, kind) in enumerate(zip(texts.texts(), types, strict=False)):
            plain = kind == _NORMAL and not raw.startswith(_LOOKS_SPECIAL)
            if not raw or (plain and i not in stated):
                continue
            text = raw.decode("utf-8", "replace")
            attributes = llama_cpp.llama_vocab_get_attr(vocab, i)
            hidden = bool(attributes & _HIDDEN_ATTRIBUTES)
            if i in stated:
                # ordinary text that llama.cpp itself made special is never parsed in a message
                made_special = SPECIAL if hidden and kind == _USER_DEFINED else 0
                tokens.append(_Token(i, text, stated[i] | made_special))
            elif hidden:
                tokens.append(_Token(i, text, SPECIAL))
            elif attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED:
                tokens.append(_Token(i, text, NORMALIZED))
        return cls(tokens, rules)

    @property
    def is_complete(self) -> bool:
        """Whether no other added tokens can occur in the parts between."""
        return self._flagged

    def split(self, text: str, *, parse_special: bool) -> Iterator[str | int]:
        """The text in order: added tokens as their ids, the parts between normalized and cut.

        ``parse_special``: whether special tokens are found too.
        """
        if not self._flagged:
            text = self._rules.apply(text, parse_special=parse_special)
            parts = self._second.split(text, parse_special)
        else:
            parts = self._in_two_passes(text, parse_special)
        for part in parts:
            if isinstance(part, str):
                yield from self._rules.parts(part)
            else:
                yield part

    def _in_two_passes(self, text: str, parse_special: bool) -> Iterator[str | int]:
        for part in self._first.split(text, parse_special):
            if isinstance(part, str):
                yield from self._second.split(self._rules.normalize(part), parse_special)
            else:
                yield part


class _Search:
    """The tokens found in one pass."""

    def __init__(self, spelled: dict[int, str], tokens: Iterable[_Token]) -> None:
        self._tokens: dict[str, _Token] = {}
        for token in tokens:
            # of two with the same spelling, the first
            self._tokens.setdefault(spelled.get(token.id, token.text), token)
        self._tokens.pop("", None)
        # a regular expression takes the first alternative that matches
        words = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def split(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Tokens and the parts between; a match that does not count is skipped whole."""
        at = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[found[0]]
            start, end = found.span()
            if token.flags & SPECIAL and not parse_special:
                continue
            if token.flags & SINGLE_WORD and (
                (start and _is_word(text[start - 1])) or (end < len(text) and _is_word(text[end]))
            ):
                continue
            if token.flags & LSTRIP:
                while start > at and text[start - 1] in WHITE_SPACE:
                    start -= 1
            if token.flags & RSTRIP:
                while end < len(text) and text[end] in WHITE_SPACE:
                    end += 1
            if start > at:
                yield text[at:start]
            yield token.id
            at = end
        if at < len(text):
            yield text[at:]


def _is_word(letter: str) -> bool:
    r"""What ``\w`` of Rust's regex matches (https://www.unicode.org/reports/tr18, annex C)."""
    kind = unicodedata.category(letter)
    return (
        kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or _FURTHER_LETTERS.match(letter) is not None
    )


def hidden_texts(header: GgufHeader, rules: TextRules) -> dict[int, bytes]:
    """Added tokens that are text but stored as control tokens.

    llama.cpp would otherwise find them in text where the library does not.
    """
    plain = {i for i, flags in rules.added if not flags & SPECIAL}
    if not plain:
        return {}
    metadata = header.metadata
    texts = metadata.get("tokenizer.ggml.tokens", ())
    types = metadata.get("tokenizer.ggml.token_type", ())
    return {
        i: text.encode()
        for i, (text, kind) in enumerate(zip(texts, types, strict=False))
        if kind == _CONTROL and i in plain
    }
