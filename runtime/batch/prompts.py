"""What the model gets of a record: the tokens of its prompt or messages, and what ends the text.

A prompt is read as ``generate`` reads one, after the batch's prefix. A conversation is framed as
``chat`` frames it; its special tokens come from the frame alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..chat.frame import Frame, Message
from ..chat.framing import choose_frame
from ..interface import Vocabulary
from ..prompt import check_length, tokenize
from .records import Record
from .settings import BatchSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model's file says about conversations: its chat template, and its family's style."""

    path: Path
    chat_template: str | None
    style: str


class Prompts:
    """Makes prompts of records. The first conversation adds to ``notes``."""

    def __init__(self, info: ModelInfo, vocab: Vocabulary, batch: BatchSettings) -> None:
        """A requested frame is made at once, others when they are needed.

        Raises:
            SettingsError: the model has no chat template, but the style is ``template``.
            TemplateFailure: its template was requested and cannot be used.
        """
        self.info, self.vocab = info, vocab
        self.notes: tuple[str, ...] = ()
        self._batch = batch
        self._frame = self._chosen() if batch.style else None

    def tokens(self, record: Record, n_ctx: int) -> tuple[int, ...]:
        """A record's prompt, for a context of ``n_ctx`` tokens.

        Raises:
            PromptError: it has far more tokens.
            TemplateFailure: the chat template refuses this conversation.
        """
        frame = self.frame(record)
        if isinstance(record.prompt, tuple):
            return record.prompt
        if frame is None:
            return tuple(tokenize(self.vocab, self._batch.prefix + (record.prompt or ""), n_ctx))
        messages = record.messages
        if self._batch.system and messages[0].role != "system":
            messages = (Message("system", self._batch.system), *messages)
        texts = [message.content for message in messages]
        check_length(self.vocab, n_ctx, "the conversation", *texts)
        return tuple(frame.written_tokens(messages))

    def stops(self, record: Record) -> tuple[str, ...]:
        """What ends a record's text, as the model writes it."""
        frame, own = self.frame(record), record.stops.strings
        if frame is None:
            return own
        return (*(text.replace("\n", frame.newline) for text in own), *frame.stops)

    def frame(self, record: Record) -> Frame | None:
        """The frame of a record's messages; None for one with a prompt."""
        if not record.messages:
            return None
        if self._frame is None:
            self._frame = self._chosen()
        return self._frame

    def _chosen(self) -> Frame:
        frame, notes = choose_frame(self, self._batch.style, self._batch.system)
        self.notes = tuple(notes)
        return frame
