"""What the chat commands share: a conversation on a loaded model, kept in its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.styles import TEMPLATE
from ..runtime.settings import CHAT_SAMPLING, CHAT_STOPS, EngineSettings, Extra
from ..store.wish import ModelWish
from ..terminal import console
from . import loading

if TYPE_CHECKING:
    from ..runtime.chat.session import Session
    from ..runtime.chat.session_keeper import SessionKeeper


#: Options whose defaults differ where replies are drawn.
CHAT_DEFAULTS = {
    "max_tokens": CHAT_STOPS.max_tokens, "repeat_penalty": CHAT_SAMPLING.repeat_penalty,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """How a conversation begins. An empty ``style`` is the model's own."""

    system: str = ""
    style: str = ""
    session: Path | None = None

    def check(self) -> None:
        """Report what cannot work before a model is loaded.

        Raises:
            SettingsError: an unknown style, or a system prompt for a conversation that has one.
            SessionError: the session cannot be kept in that file.
        """
        from ..runtime.chat.session_file import check_name
        from ..runtime.errors import SettingsError
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
    """A conversation, continued from its file if there is one; saved there at the end.

    Raises:
        SettingsError: options that cannot work.
        SessionError: a file that cannot be continued.
    """
    from ..runtime.chat.framing import choose_frame
    from ..runtime.chat.session import Session
    from ..terminal.chat_commands import load, note_saved

    talk.check()
    with ExitStack() as stack:
        keeper = _keeper(talk.session)
        if keeper is not None:
            stack.enter_context(keeper)
        # any conversation may be saved, by --session or with /save
        extras = {Extra.SESSION} | ({Extra.TERMINAL} if console.stdin_is_terminal() else set())
        if talk.style in ("", TEMPLATE):
            extras.add(Extra.TEMPLATE)
        settings = replace(settings, extras=settings.extras | extras)
        engine, load_s = loading.load_engine(model, settings)
        stack.enter_context(closing(engine))
        frame, notes = choose_frame(engine, talk.style, talk.system)
        console.notes(notes)
        session = Session(engine, frame, talk.system)
        adapter = f", adapter {engine.adapter}" if engine.adapter else ""
        console.paragraph(
            f"{model.name}: {engine.info.source}, {engine.n_ctx} tokens of context, style "
            f"{session.style.name}{adapter}, loaded in {load_s:.1f} s"
        )
        if keeper is not None and keeper.exists:
            load(session, keeper.path)
            keeper.loaded(session)
            if talk.style and session.style.name != talk.style:
                console.note(f"note: the saved conversation is of style {session.style.name}")
        if keeper is None:
            yield session
            return
        session.keep = partial(keeper.keep, session)
        try:
            yield session
        finally:
            if (saved := keeper.save(session)) is not None:
                note_saved(session, *saved)


def _keeper(path: Path | None) -> SessionKeeper | None:
    from ..cache import cache_folder
    from ..runtime.chat.session_keeper import SessionKeeper

    return None if path is None else SessionKeeper(path, cache_folder())
