"""A vocabulary as GGUF stores it, whichever files it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from .errors import FileFormatError, UnsupportedError

#: Score of a unigram token that text must never become.
NEVER = -1e6

#: No vocabulary has ids above this.
MOST_TOKENS = 1 << 24


class TokenType(IntEnum):
    """llama.cpp's ``llama_token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in text before the text is cut: before or after normalization.

    ``flags`` are among "lstrip", "rstrip" and "single_word".
    """

    id: int
    text: str
    special: bool
    flags: tuple[str, ...] = ()
    normalized: bool = False

    @property
    def type(self) -> TokenType:
        """As in Hugging Face: "special" tokens are not shown, the others are plain text."""
        return TokenType.CONTROL if self.special else TokenType.USER_DEFINED


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """Token texts and types, and how text becomes tokens.

    ``model`` is llama.cpp's name of the algorithm: "gpt2", byte-level BPE with the split named
    ``pre`` and ``merges`` by rank; or "t5", sentencepiece's unigram with ``scores``, the
    normalizer's compiled ``charsmap`` and two flags for spaces. llama.cpp neither applies a Unicode
    normal form (``normalizer``) nor lower-cases, nor knows the ``steps`` of a longer normalizer (a
    JSON list), the space that ``prefix_space`` puts before text or ``cuts`` before its own split (a
    JSON list): the runtime does all that first.
    ``added`` are the added tokens with their flags, which the runtime also follows. ``special`` has
    the ids of "bos", "eos" and so on; ``named_templates`` the chat templates but the default.
    ``notes`` say what was changed to fit.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    model: str = "gpt2"
    scores: tuple[float, ...] = ()
    charsmap: bytes = b""
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    normalizer: str = ""
    steps: str = ""
    lowercase: bool = False
    prefix_space: bool = False
    cuts: str = ""
    added: tuple[AddedToken, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fit_to_rows(vocabulary: GgufVocabulary, n_rows: int) -> GgufVocabulary:
    """Pad with unused tokens, or cut, so that every row of the embedding has one token.

    Raises:
        FileFormatError: two tokens have the same text, on which llama.cpp would abort.
        UnsupportedError: tokens that text can produce have no row.
    """
    _check_unique(vocabulary)
    n_tokens = len(vocabulary.tokens)
    if n_tokens < n_rows:
        padding = _padding(vocabulary, range(n_tokens, n_rows))
        return replace(
            vocabulary,
            tokens=vocabulary.tokens + padding,
            types=vocabulary.types + (TokenType.UNUSED,) * len(padding),
            scores=vocabulary.scores and vocabulary.scores + (NEVER,) * len(padding),
            notes=(
                *vocabulary.notes,
                f"vocabulary: {n_tokens} tokens padded to the embedding's {n_rows} rows",
            ),
        )
    if n_tokens == n_rows:
        return vocabulary
    lost = range(n_rows, n_tokens)
    kept = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
    if any(vocabulary.types[i] not in kept for i in lost):
        raise UnsupportedError(
            f"the tokenizer has {n_tokens} tokens, but the embedding only {n_rows} rows: "
            f"token {n_rows} ({vocabulary.tokens[n_rows]!r}) could not be embedded"
        )
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:n_rows],
        types=vocabulary.types[:n_rows],
        scores=vocabulary.scores[:n_rows],
        special={name: i for name, i in vocabulary.special.items() if i < n_rows},
        added=tuple(token for token in vocabulary.added if token.id < n_rows),
        notes=(
            *vocabulary.notes,
            f"vocabulary: {len(lost)} added tokens without an embedding row left out",
        ),
    )


def padding_text(i: int) -> str:
    """The text of an unused id."""
    return f"[PAD{i}]"


def _padding(vocabulary: GgufVocabulary, ids: range) -> tuple[str, ...]:
    taken = set(vocabulary.tokens)
    texts = []
    for i in ids:
        text = padding_text(i)
        while text in taken:
            text = f"[{text}]"
        taken.add(text)
        texts.append(text)
    return tuple(texts)


def _check_unique(vocabulary: GgufVocabulary) -> None:
    if len(set(vocabulary.tokens)) == len(vocabulary.tokens):
        return
    (text, _), *_ = Counter(vocabulary.tokens).most_common(1)
    raise FileFormatError(f"the tokenizer has two tokens with the text {text!r}")
