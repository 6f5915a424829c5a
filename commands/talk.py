"""What the commands that talk share: a conversation on a loaded model, kept in its file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console
from ..model_store import ModelWish
from . import loading

if TYPE_CHECKING:
    from ..runtime.session import Session
    from ..runtime.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """How a conversation begins. An empty ``style`` is the model's own."""

    system: str = ""
    style: str = ""
    session: Path | None = None

    def check(self) -> None:
        """Find what cannot work before a model is loaded.

        Raises:
            SettingsError: an unknown style, or a system prompt for a conversation that has one.
            SessionError: the session cannot be kept in that file.
        """
        from ..runtime.errors import SettingsError
        from ..runtime.session_file import check_name
        from ..runtime.settings import check_style

        check_style(self.style)
        if self.session is not None:
            check_name(self.session)
            if self.system and self.session.exists():
                raise SettingsError(
                    f"--system: the conversation in {self.session} has its own opening"
                )


@contextmanager
def conversation_on(
    model: ModelWish, talk: TalkSettings, settings: EngineSettings
) -> Iterator[Session]:
    """A conversation, the one in its file if there is one; kept there at the end.

    Raises:
        SettingsError: options that cannot work.
        SessionError: a file that cannot be continued.
    """
    from ..chat_commands import load, save
    from ..runtime.framing import choose_frame
    from ..runtime.session import Session

    talk.check()
    file = talk.session
    saved = file is not None and file.exists()
    engine, load_s = loading.load_engine(model, settings)
    _end_on_signals()
    with closing(engine):
        frame, notes = choose_frame(engine, talk.style, talk.system)
        console.notes(notes)
        session = Session(engine, frame, talk.system)
        console.paragraph(
            f"{model.name}: {engine.info.source}, {engine.n_ctx} tokens of context, style "
            f"{session.style.name}, loaded in {load_s:.1f} s"
        )
        if file is not None and saved:
            load(session, file)
            if talk.style and session.style.name != talk.style:
                console.note(f"note: the saved conversation is of style {session.style.name}")
        try:
            yield session
        finally:
            if file is not None and session.changed and (session.n_turns or saved):
                save(session, file)


def _end_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the program in order, so that a session is saved."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), end)
