"""One conversation: turns kept as tokens, only new ones computed, the oldest dropped when full."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from infer_os.models.styles import STYLES, PromptStyle

from .engine import Engine, Vocabulary
from .errors import PromptError
from .generate import FinishReason, Generation, stream_text
from .settings import SamplingSettings, StopSettings


@dataclass(frozen=True, slots=True)
class Turn:
    """One message and its reply, as they stand in the cache."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A conversation without its engine: what a session file keeps of it."""

    style: str
    system: tuple[int, ...]
    turns: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All of it, as it stands in a cache."""
        return (*self.system, *(token for turn in self.turns for token in turn))


class Session:
    """A conversation on an engine. ``last`` tells about the latest reply.

    ``changed`` says that a turn, a reset or another conversation came since it began; whoever keeps
    it in a file sets it back.
    """

    def __init__(self, engine: Engine, style: PromptStyle, system: str = "") -> None:
        """Start a conversation.

        Raises:
            PromptError: the system prompt alone fills the context.
        """
        self._engine = engine
        self._style = style
        head = style.system.format(text=system) if system else ""
        self._system = tuple(engine.vocab.tokenize(head)) if head else self._opening()
        if len(self._system) >= engine.n_ctx:
            raise PromptError(
                f"the system prompt has {len(self._system)} tokens; the context holds "
                f"{engine.n_ctx}: raise --context"
            )
        self._turns: list[Turn] = []
        self.last = Generation()
        self.dropped_turns = 0
        self.changed = False

    def _opening(self) -> tuple[int, ...]:
        """What the model wants in front of any text (a start token, if it has one)."""
        return tuple(self._engine.vocab.tokenize("", add_special=True))

    @property
    def n_turns(self) -> int:
        """Turns that the model still sees."""
        return len(self._turns)

    @property
    def engine(self) -> Engine:
        """The engine that it runs on."""
        return self._engine

    @property
    def style(self) -> PromptStyle:
        """The frame around its messages."""
        return self._style

    def record(self) -> SessionRecord:
        """What a session file keeps."""
        turns = tuple(turn.tokens for turn in self._turns)
        return SessionRecord(self._style.name, self._system, turns)

    def resume(self, record: SessionRecord) -> None:
        """Go on where a recorded conversation was."""
        self._style = STYLES[record.style]
        self._system = record.system
        self._turns = [Turn(tokens) for tokens in record.turns]
        self.last = Generation()
        self.changed = True

    def reset(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._turns.clear()
        self.changed = True

    def reply(self, message: str, sampling: SamplingSettings, stop: StopSettings) -> Generator[str]:
        """Answer a message, chunk by chunk; the turn is kept however the reply ends.

        Old turns are dropped when the message and a quarter of the context for the reply do not
        fit, and then down to half of the context, the newest turn excepted: what stays must be
        computed again, which must not be the fate of every later turn as well. ``dropped_turns``
        counts those of this reply.

        Raises:
            PromptError: the message alone does not fit.
        """
        vocab, style = self._engine.vocab, self._style
        opened = vocab.tokenize(
            style.user.format(text=message) + style.assistant,
            add_special=False, parse_special=False,
        )  # fmt: skip
        prompt = self._make_room(opened, stop.max_tokens)
        self.last = Generation()
        stops = StopSettings(stop.max_tokens, (*stop.strings, *style.stops))
        text = ""
        try:
            stream = stream_text(self._engine, prompt, sampling, stops, self.last)
            with closing(stream):
                for chunk in stream:
                    text += chunk
                    yield chunk
        finally:
            if self.last.finish_reason is None:
                self.last.finish_reason = FinishReason.INTERRUPT
            self._turns.append(Turn((*opened, *self._closed_reply(text))))
            self.changed = True

    def _closed_reply(self, visible: str) -> tuple[int, ...]:
        """The reply's tokens as later turns shall see them: without a stop string or end token.

        The drawn tokens are kept as they are, so that the cache can be; only what a stop string
        cuts out of the middle of a token is tokenized anew.
        """
        vocab = self._engine.vocab
        tokens = list(self.last.tokens)
        if tokens and vocab.is_end(tokens[-1]):
            tokens.pop()
        if self.last.finish_reason is FinishReason.STOP:
            tokens = _cut_tokens(vocab, tokens, visible.encode())
        end = vocab.tokenize(self._style.end, add_special=False, parse_special=False)
        return (*tokens, *end)

    def _make_room(self, opened: list[int], max_tokens: int) -> list[int]:
        n_ctx = self._engine.n_ctx
        reserve = min(max_tokens, n_ctx // 4)
        if len(self._system) + len(opened) + 1 > n_ctx:
            raise PromptError(
                f"the message has {len(opened)} tokens; the context of {n_ctx} has no room for it"
            )
        self.dropped_turns = 0
        if self._length(opened) + reserve > n_ctx:
            while self._turns and (
                self._length(opened) + reserve > n_ctx
                or (len(self._turns) > 1 and self._length(opened) > n_ctx // 2)
            ):
                del self._turns[0]
                self.dropped_turns += 1
        return [*self._system, *(t for turn in self._turns for t in turn.tokens), *opened]

    def _length(self, opened: list[int]) -> int:
        return len(self._system) + sum(len(turn.tokens) for turn in self._turns) + len(opened)


def _cut_tokens(vocab: Vocabulary, tokens: list[int], visible: bytes) -> list[int]:
    """The tokens whose text is ``visible``, a beginning of theirs."""
    kept, held = [], 0
    for token in tokens:
        piece = vocab.piece(token)
        if not visible.startswith(piece, held):
            break
        kept.append(token)
        held += len(piece)
    return kept + vocab.tokenize(visible[held:], add_special=False, parse_special=False)
