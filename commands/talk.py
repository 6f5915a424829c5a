"""What the commands that talk share: a conversation on a loaded model, kept in its file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def conversation_on(
    model: ModelWish, talk: TalkSettings, settings: EngineSettings
) -> Iterator[Session]:
    """A conversation, the one in its file if there is one; kept there at the end.

    Raises:
        SettingsError: options that cannot work.
        SessionError: a file that cannot be continued.
    """
    from .. import conversation
    from ..models.styles import STYLES
    from ..runtime.errors import SettingsError
    from ..runtime.session import Session
    from ..runtime.session_file import check_name

    style, session = talk.style, talk.session
    if style and style not in STYLES:
        raise SettingsError(f"--style {style}: expected {' or '.join(STYLES)}")
    if session is not None:
        check_name(session)
    saved = session is not None and session.exists()
    if saved and talk.system:
        raise SettingsError(f"--system: the conversation in {session} has its own opening")
    engine, load_s = loading.load_engine(model, settings)
    _end_on_signals()
    try:
        held = Session(engine, STYLES[style or engine.info.style], talk.system)
        console.note(
            f"{model.name}: {engine.info.source}, {engine.n_ctx} tokens of context, loaded in "
            f"{load_s:.1f} s"
        )
        if session is not None and saved:
            conversation.load(held, session)
            if style and held.style.name != style:
                console.note(f"note: the saved conversation is of style {held.style.name}")
        try:
            yield held
        finally:
            if session is not None and held.changed and (held.n_turns or saved):
                conversation.save(held, session)
    finally:
        engine.close()


def _end_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the program in order, so that a session is saved."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), end)
