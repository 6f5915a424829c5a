"""A conversation of the Python API, with a model that does other things between its replies.

Goes in: messages. Comes out: replies; or files that the conversation is continued from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Protocol

from infer_os.cache import cache_folder

from ..arguments import file_path, prompt_text, record_or
from ..exclusive import Stream
from ..generate import Generation
from ..settings import CHAT_SAMPLING, CHAT_STOPS, SamplingSettings, StopSettings
from ..text import without_first_space
from .session import Session


class ModelOfChats(Protocol):
    """What a conversation needs of its model."""

    @property
    def path(self) -> Path:
        """The GGUF file."""
        ...

    def using(self, what: str, adapter: str | None = None) -> AbstractContextManager[None]:
        """A turn of the model with an adapter, for anything but a generation."""
        ...

    def spoken(
        self, what: str, chunks: Generator[str, None, None], generation: Callable[[], Generation],
        adapter: str | None,
    ) -> Stream[str]:  # fmt: skip
        """A stream of text in a turn of the model; ``generation`` describes it at the end."""
        ...


class Chat:
    """A conversation with a model: messages in, replies out. Lives as long as its model.

    Only what is new is computed; when the context is full, the oldest turns are dropped.
    """

    def __init__(
        self,
        model: ModelOfChats,
        session: Session,
        sampling: SamplingSettings,
        stops: StopSettings,
        adapter: str | None = None,
    ) -> None:
        """Made by :meth:`Model.chat`. The last three may be replaced at any time."""
        self._model, self._session = model, session
        self.sampling, self.stops, self.adapter = sampling, stops, adapter

    @property
    def system(self) -> str:
        """The system prompt."""
        return self._session.system

    @property
    def style(self) -> str:
        """The name of the frame around the messages."""
        return self._session.style.name

    @property
    def n_turns(self) -> int:
        """Turns that the model still sees."""
        return self._session.n_turns

    @property
    def dropped_turns(self) -> int:
        """Turns that the latest message pushed out of the context."""
        return self._session.dropped_turns

    def say(self, text: str) -> str:
        """The reply to a message.

        Raises:
            PromptError: the message alone does not fit in the context.
            KeyboardInterrupt: Ctrl-C, in the main thread; the turn stays, as far as it got.
            ModelBusy, ModelClosed: see the module.
        """
        with self.stream(text) as chunks:
            return "".join(chunks)

    def stream(self, text: str) -> Stream[str]:
        """The reply to a message, chunk by chunk; closed early, the turn stays as far as it got.

        Raises:
            As :meth:`say`, with the first chunk.
        """
        session, text = self._session, prompt_text(text, "message")
        sampling = record_or(self.sampling, CHAT_SAMPLING, "sampling")
        stops = record_or(self.stops, CHAT_STOPS, "stops")

        def chunks() -> Generator[str, None, None]:
            with closing(session.reply(text, sampling, stops)) as reply:
                yield from without_first_space(reply)

        return self._model.spoken("reply", chunks(), lambda: session.last, self.adapter)

    def undo(self) -> str | None:
        """Forget the last turn; returns its message, None if there is none."""
        with self._model.using("undo", self.adapter):
            turn = self._session.undo()
        return turn.message if turn else None

    def reset(self) -> None:
        """Forget every turn; the system prompt stays."""
        with self._model.using("reset", self.adapter):
            self._session.reset()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save it to a file, with what the model has computed for it.

        Raises:
            SessionError: the file cannot be written, or is not a session file.
        """
        from .session_file import save_session

        file = file_path(path, "path")
        with self._model.using("save", self.adapter):
            save_session(file, self._session, self._model.path, cache_folder())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue a conversation saved by :meth:`save` or ``infer-os chat``.

        Raises:
            SessionError: not a session of this user, model, adapter and llama.cpp.
        """
        from .session_file import load_session

        file = file_path(path, "path")
        with self._model.using("load", self.adapter):
            load_session(file, self._session, self._model.path, cache_folder())
