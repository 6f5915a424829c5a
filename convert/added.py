"""How added tokens are found in text: what our files state in addition to llama.cpp's types.

Goes in: a vocabulary. Comes out: the added tokens that its file must state with their flags,
and those stored as control tokens, so that llama.cpp does not find them where the ``tokenizers``
library would not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infer_os.native import text_rules
from infer_os.native.text_rules import TextRules

from .errors import UnsupportedError
from .normalizer import text_steps
from .vocabulary import AddedToken, GgufVocabulary

_BITS = {
    "lstrip": text_rules.LSTRIP,
    "rstrip": text_rules.RSTRIP,
    "single_word": text_rules.SINGLE_WORD,
}
#: ASCII that NFC and NFD write for other characters, such as Greek's question mark.
_COMPOSED_ASCII = frozenset(";`K")
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class StatedTokens:
    """Added tokens in the order of their ids; ``hidden`` are those stored as control tokens."""

    tokens: tuple[AddedToken, ...] = ()
    hidden: frozenset[int] = frozenset()

    @property
    def ids(self) -> list[int]:
        """The value of ``inferos.tokenizer.added_ids``."""
        return [token.id for token in self.tokens]

    @property
    def flags(self) -> list[int]:
        """The value of ``inferos.tokenizer.added_flags``."""
        return [
            sum(_BITS[flag] for flag in token.flags)
            | (text_rules.NORMALIZED if token.normalized else 0)
            | (text_rules.SPECIAL if token.special else 0)
            for token in self.tokens
        ]


def stated_tokens(vocabulary: GgufVocabulary) -> StatedTokens:
    """The added tokens that the vocabulary's file must state; empty if token types say it all."""
    tokens = tuple(sorted(vocabulary.added, key=lambda token: token.id))
    hidden = _hidden(vocabulary, tokens)
    if (
        hidden
        or _rules(vocabulary) != TextRules()
        or vocabulary.steps
        or any(token.flags for token in tokens)
        or len({token.normalized for token in tokens}) > 1
    ):
        return StatedTokens(tokens, hidden)
    return StatedTokens()


def added_notes(path: Path, vocabulary: GgufVocabulary) -> tuple[str, ...]:
    """Notes on what other programs on llama.cpp do with the added tokens and the text.

    Raises:
        UnsupportedError: a token is normalized to nothing, on which the library fails.
    """
    rules = _rules(vocabulary)
    for token in vocabulary.added:
        if token.normalized and not rules.normalize(token.text):
            raise UnsupportedError(
                f"{path}: the normalizer leaves nothing of the added token {token.text!r}"
            )
    notes = []
    flagged = [token for token in vocabulary.added if token.flags]
    if flagged:
        notes.append(
            f"vocabulary: {_names(flagged)}: this program drops the spaces next to these tokens "
            "(lstrip, rstrip) or finds them only as words (single_word), as Hugging Face does; "
            "other llama.cpp programs do neither"
        )
    hidden = stated_tokens(vocabulary).hidden
    if hidden:
        names = _names([token for token in vocabulary.added if token.id in hidden])
        notes.append(
            f"vocabulary: {names}: text to this program; stored as special tokens, which other "
            "llama.cpp programs do not show"
        )
    if vocabulary.steps:
        kinds = " + ".join(step["type"] for step in json.loads(vocabulary.steps))
        notes.append(
            f"vocabulary: this program normalizes text by {kinds}; other llama.cpp programs must "
            "be given text in that form"
        )
    if vocabulary.prefix_space:
        notes.append(
            "vocabulary: this program puts a space before each text (add_prefix_space); other "
            "llama.cpp programs must be given it"
        )
    return tuple(notes)


def _names(tokens: list[AddedToken]) -> str:
    more = f" and {len(tokens) - _MOST_NAMED} more" if len(tokens) > _MOST_NAMED else ""
    return ", ".join(repr(token.text) for token in tokens[:_MOST_NAMED]) + more


def _rules(vocabulary: GgufVocabulary) -> TextRules:
    return TextRules(
        vocabulary.normalizer,
        steps=text_steps(vocabulary.steps),
        prefix_space=vocabulary.prefix_space,
    )


def _hidden(vocabulary: GgufVocabulary, tokens: tuple[AddedToken, ...]) -> frozenset[int]:
    """Plain tokens that llama.cpp could find between the tokens that the library finds.

    It looks for the texts of user-defined tokens in everything it is given.
    """
    rules = _rules(vocabulary)
    normalizes = bool(vocabulary.normalizer or vocabulary.steps)
    # a match that does not count is skipped whole, with any token that begins in it
    passed = {
        normalized: _Beginnings(
            token.text for token in tokens
            if token.normalized == normalized and (token.special or "single_word" in token.flags)
        )
        for normalized in (False, True)
    }  # fmt: skip
    return frozenset(
        token.id for token in tokens
        if not token.special
        and (
            "single_word" in token.flags
            or (normalizes and _is_made(vocabulary, token, rules))
            or (rules.prefix_space and token.text.startswith(" ") and token.text[1:2] != " ")
            or passed[token.normalized].may_hold(token.text)
        )
    )  # fmt: skip


def _is_made(vocabulary: GgufVocabulary, token: AddedToken, rules: TextRules) -> bool:
    """Whether normalized text can contain a token's text where the token is not found."""
    if token.normalized:
        return rules.normalize(token.text) != token.text
    ascii_form = vocabulary.normalizer in ("NFC", "NFD") and not vocabulary.steps
    return not (ascii_form and token.text.isascii() and not _COMPOSED_ASCII & set(token.text))


class _Beginnings:
    """What may begin inside one of several texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        self._ends = {text[i:] for text in self._texts for i in range(len(text))}

    def may_hold(self, text: str) -> bool:
        """Whether a text may begin inside one of them."""
        if any(text[:n] in self._ends for n in range(1, len(text) + 1)):
            return True
        return any(text in other for other in self._texts)
