"""Frames: how the turns of a conversation become the tokens in the cache.

In: the system prompt, the turns (messages as text, replies as the tokens that were drawn) and a new
message, or a conversation that is all text. Out: tokens. The frame's own text is read with its
special tokens; typed text never is: ``<|endoftext|>`` in a message stays letters. Text between two
special tokens is tokenized as one piece, whoever wrote it, as Hugging Face's tokenizers do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from infer_os.models.styles import PromptStyle

from ..interface import Vocabulary

_CACHED_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and the tokens of its reply, without what closes it."""

    message: str
    reply: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation given as text; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Typed:
    """Text from the user: never read as special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens that the model drew."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """An end of text: what follows is tokenized separately."""


#: A piece of a conversation; a bare string is the frame's own, with special tokens spelled out.
Piece = str | Typed | Drawn | Cut


class Frame(Protocol):
    """A way to write conversations.

    Any of ``stops`` ends a reply, as does a token of ``ends`` or one of the vocabulary's own end
    tokens; ``newline`` is its line break.
    """

    name: str
    stops: tuple[str, ...]
    ends: frozenset[int]
    newline: str

    def tokens(self, system: str, turns: Sequence[Turn], message: str | None) -> list[int]:
        """The conversation, up to where the reply to ``message`` begins, or closed if None.

        Raises:
            TemplateFailure: a chat template refuses it.
        """
        ...

    def written_tokens(self, messages: Sequence[Message]) -> list[int]:
        """A conversation given as text, up to where the reply to its last message begins.

        Raises:
            TemplateFailure: a chat template refuses it.
        """
        ...


class PieceTokenizer:
    """Pieces to tokens, caching texts that recur at every turn."""

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._special = frozenset(vocab.special_texts())
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._encode = functools.lru_cache(_CACHED_TEXTS)(self._tokenize)

    def _tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._vocab.tokenize(text, add_special=False, parse_special=special))

    @functools.cached_property
    def start(self) -> tuple[int, ...]:
        """What the model wants before any text (a start token, if it has one)."""
        plain = self._vocab.tokenize("a", add_special=False)
        whole = self._vocab.tokenize("a", add_special=True)
        ends = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return tuple(whole[: next(ends, 0)])

    def is_special(self, text: str) -> bool:
        """Whether the vocabulary has this special token."""
        return text in self._special

    def special_token(self, text: str) -> int:
        """The id of a special token."""
        return self._encode(text, True)[0]

    def first_special(self, text: str) -> tuple[str, str]:
        """The text up to its first special token, and that token; "" if there is none."""
        before, *found = self._pattern.split(text, maxsplit=1)
        return before, found[0] if found else ""

    def encode(self, pieces: Iterable[Piece], *, again: bool = True) -> list[int]:
        """Their tokens. ``again``: whether the same texts will recur, and so are cached."""
        encode = self._encode if again else self._tokenize
        tokens: list[int] = []
        text: list[str] = []

        def flush() -> None:
            if text:
                tokens.extend(encode("".join(text), False))
                text.clear()

        for piece in pieces:
            match piece:
                case Typed(typed):
                    text.append(typed)
                case Drawn(drawn):
                    flush()
                    tokens.extend(drawn)
                case Cut():
                    flush()
                case str():
                    # a pattern with one group: its matches are every other part
                    for i, part in enumerate(self._pattern.split(piece)):
                        if i % 2:
                            flush()
                            tokens.extend(self._encode(part, True))
                        else:
                            text.append(part)
        flush()
        return tokens


class StyleFrame:
    """The frame of a :class:`~infer_os.models.styles.PromptStyle`."""

    def __init__(self, style: PromptStyle, vocab: Vocabulary) -> None:
        self.name = style.name
        self.stops = style.stops
        self.newline = style.newline
        self._style = style
        self._tokenizer = PieceTokenizer(vocab)
        special = filter(self._tokenizer.is_special, style.stops)
        self.ends = frozenset(map(self._tokenizer.special_token, special))

    @property
    def missing_markers(self) -> tuple[str, ...]:
        """Special tokens of the style that this vocabulary lacks."""
        return tuple(m for m in self._style.markers if not self._tokenizer.is_special(m))

    def tokens(self, system: str, turns: Sequence[Turn], message: str | None) -> list[int]:
        """See :meth:`Frame.tokens`."""
        pieces = self._pieces(system, turns, message)
        return [*self._tokenizer.start, *self._tokenizer.encode(pieces)]

    def written_tokens(self, messages: Sequence[Message]) -> list[int]:
        """See :meth:`Frame.written_tokens`."""
        pieces = self._written(messages)
        return [*self._tokenizer.start, *self._tokenizer.encode(pieces, again=False)]

    def _pieces(self, system: str, turns: Sequence[Turn], message: str | None) -> Iterator[Piece]:
        style = self._style
        yield from self._filled(style.system, system) if system else (style.opening,)
        for turn in turns:
            yield Cut()
            yield from self._filled(style.user, turn.message)
            yield style.assistant
            yield Drawn(turn.reply)
            yield style.end
        if message is not None:
            yield Cut()
            yield from self._filled(style.user, message)
            yield style.assistant

    def _written(self, messages: Sequence[Message]) -> Iterator[Piece]:
        style = self._style
        if messages[0].role != "system":
            yield style.opening
        for message in messages:
            text = message.content
            if message.role == "system":
                yield from self._filled(style.system, text)
            elif message.role == "user":
                yield Cut()
                yield from self._filled(style.user, text)
            else:
                yield style.assistant
                yield from self._filled(style.reply, text.lstrip())
                yield style.end
        yield style.assistant

    def _filled(self, form: str, text: str) -> Iterator[Piece]:
        before, _, after = form.partition("{text}")
        yield before
        for i, line in enumerate(text.split("\n")):
            if i:
                yield self.newline
            yield Typed(line)
        yield after
