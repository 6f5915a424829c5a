"""One conversation: turns kept as tokens, only new ones computed, the oldest dropped when full."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from infer_os.models.styles import PromptStyle

from ..errors import PromptError
from ..generate import FinishReason, Generation, stream_text
from ..interface import Engine, Vocabulary
from ..prompt import check_length
from ..settings import SamplingSettings, StopSettings
from ..text import replaced
from .frame import Frame, StyleFrame, Turn
from .framing import make_frame


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A conversation without its engine: what a session file keeps of it."""

    style: str
    system: str
    turns: tuple[Turn, ...]


class Session:
    """A conversation on an engine. ``last`` describes the latest reply.

    ``changed`` says that a turn, a reset or another conversation came since it began; whoever saves
    it to a file resets it. ``keep`` is called by the chat after each turn and command: it writes
    the turns to the file, if there is one.
    """

    def __init__(self, engine: Engine, style: PromptStyle | Frame, system: str = "") -> None:
        """Start a conversation.

        Raises:
            PromptError: the system prompt alone fills the context.
            TemplateFailure: a chat template refuses it.
        """
        self._engine = engine
        self._frame: Frame = (
            StyleFrame(style, engine.vocab) if isinstance(style, PromptStyle) else style
        )
        self._turns: list[Turn] = []
        self._system = ""
        self.system = system
        self.last = Generation()
        self.dropped_turns = 0
        self.changed = False
        self.keep: Callable[[], None] = _nowhere

    @property
    def system(self) -> str:
        """The system prompt; after a change, what follows is computed again.

        Raises:
            PromptError: it alone fills the context; the old one stays.
            TemplateFailure: a chat template refuses it.
        """
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        check_length(self._engine.vocab, self._engine.n_ctx, "the system prompt", text)
        count = len(self._frame.tokens(text, (), ""))
        if count >= self._engine.n_ctx:
            raise PromptError(
                f"the system prompt has {count} tokens; the context holds "
                f"{self._engine.n_ctx}: raise --context"
            )
        self._system = text
        self.changed = True

    @property
    def n_turns(self) -> int:
        """Turns that the model still sees."""
        return len(self._turns)

    @property
    def engine(self) -> Engine:
        """The engine that it runs on."""
        return self._engine

    @property
    def style(self) -> Frame:
        """The frame around its messages."""
        return self._frame

    def tokens(self) -> list[int]:
        """The whole conversation, as a cache holds it."""
        return self._frame.tokens(self._system, self._turns, None)

    def record(self) -> SessionRecord:
        """What a session file keeps."""
        return SessionRecord(self._frame.name, self._system, tuple(self._turns))

    def resume(self, record: SessionRecord) -> None:
        """Continue a recorded conversation.

        Raises:
            SettingsError: its style is unknown here.
            TemplateFailure: the model's chat template cannot be used.
        """
        self._frame = make_frame(record.style, self._engine)
        self._system = record.system
        self._turns = list(record.turns)
        self.last = Generation()
        self.changed = True

    def reset(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._turns.clear()
        self.changed = True

    def undo(self) -> Turn | None:
        """Forget the last turn and return it; None if there is none."""
        if not self._turns:
            return None
        self.changed = True
        return self._turns.pop()

    def reply(self, message: str, sampling: SamplingSettings, stop: StopSettings) -> Generator[str]:
        """Answer a message, chunk by chunk; the turn is kept however the reply ends.

        Old turns are dropped when the message and a quarter of the context for the reply do not
        fit, and then down to half of the context, except the newest turn: what stays must be
        computed again, and this should not recur on every later turn. ``dropped_turns`` counts
        those of this reply.

        Raises:
            PromptError: the message alone does not fit.
        """
        prompt = self._make_room(message, stop.limit)
        self.last = Generation()
        own = (text.replace("\n", self._frame.newline) for text in stop.strings)
        stops = StopSettings(stop.max_tokens, (*own, *self._frame.stops))
        drawn: list[str] = []
        try:
            stream = stream_text(self._engine, prompt, sampling, stops, self.last)
            with closing(stream):
                own_text = _kept(self._up_to_end(stream), drawn)
                # a text that follows a grammar would no longer follow it
                yield from (
                    own_text if sampling.constraint
                    else replaced(own_text, self._frame.newline, "\n")
                )  # fmt: skip
        finally:
            if self.last.finish_reason is None:
                self.last.finish_reason = FinishReason.INTERRUPT
            self._turns.append(Turn(message, self._reply_tokens("".join(drawn))))
            self.changed = True

    def _up_to_end(self, stream: Iterator[str]) -> Iterator[str]:
        """The stream up to a special token that ends a turn, which shows only in the tokens."""
        shown = 0
        for chunk in stream:
            at = self._end_of_turn()
            if at is not None:
                self.last.finish_reason = FinishReason.END
                data = b"".join(map(self._engine.vocab.piece, self.last.tokens[:at]))
                yield data.decode("utf-8", "replace")[shown:]
                return
            yield chunk
            shown += len(chunk)

    def _end_of_turn(self) -> int | None:
        """Where in the reply such a token is."""
        ends = self._frame.ends
        return next((i for i, token in enumerate(self.last.tokens) if token in ends), None)

    def _reply_tokens(self, visible: str) -> tuple[int, ...]:
        """The reply's tokens as later turns will see them: without a stop string or end token.

        The drawn tokens are kept as they are, so that the cache stays valid; only if a stop string
        cuts a token in the middle is the rest of it tokenized again.
        """
        vocab = self._engine.vocab
        tokens = self.last.tokens[: self._end_of_turn()]
        if tokens and vocab.is_end(tokens[-1]):
            tokens.pop()
        if self.last.finish_reason is FinishReason.STOP:
            tokens = _cut_tokens(vocab, tokens, visible.encode())
        return tuple(tokens)

    def _make_room(self, message: str, limit: int) -> list[int]:
        """The prompt for a message, after dropping as many of the oldest turns as needed."""
        n_ctx = self._engine.n_ctx
        reserve = min(limit, n_ctx // 4)
        check_length(self._engine.vocab, n_ctx, "the message", message)
        alone = len(self._frame.tokens(self._system, (), message))
        if alone + 1 > n_ctx:
            raise PromptError(
                f"the message and what must precede it have {alone} tokens; the context of {n_ctx} "
                "has no room for it"
            )
        dropped = 0
        prompt = self._prompt(dropped, message)
        if len(prompt) + reserve > n_ctx:
            while dropped < len(self._turns) and (
                len(prompt) + reserve > n_ctx
                or (dropped + 1 < len(self._turns) and len(prompt) > n_ctx // 2)
            ):
                dropped += 1
                prompt = self._prompt(dropped, message)
        del self._turns[:dropped]
        self.dropped_turns = dropped
        return prompt

    def _prompt(self, dropped: int, message: str) -> list[int]:
        return self._frame.tokens(self._system, self._turns[dropped:], message)


def _nowhere() -> None:
    """The conversation is not kept in a file."""


def _kept(chunks: Iterator[str], kept: list[str]) -> Iterator[str]:
    """The same chunks, also appended to ``kept``."""
    for chunk in chunks:
        kept.append(chunk)
        yield chunk


def _cut_tokens(vocab: Vocabulary, tokens: list[int], visible: bytes) -> list[int]:
    """The leading tokens whose text is ``visible``."""
    kept, held = [], 0
    for token in tokens:
        piece = vocab.piece(token)
        if not visible.startswith(piece, held):
            break
        kept.append(token)
        held += len(piece)
    return kept + vocab.tokenize(visible[held:], add_special=False, parse_special=False)
