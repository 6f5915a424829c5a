"""Save a conversation to its file as it goes on, against kills, crashes and other programs.

A :class:`SessionPlace` is a session file's name that one process writes: its lock is in the cache
folder, under a hash of the name, so that it survives the file's replacement. A
:class:`SessionKeeper` writes the turns after each turn (without KV rows, which are large and can be
computed again) and everything at the end; it never replaces what another program wrote.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SessionError
from .session_file import check_name, name_model, save_session, save_turns
from .session_place import SessionPlace

if TYPE_CHECKING:
    from .session import Session, SessionRecord


class SessionKeeper:
    """The file of one conversation, from its beginning to its end. A context manager."""

    def __init__(self, path: Path, cache_folder: Path) -> None:
        """Take the file's name; ``exists`` says whether it holds a conversation.

        Raises:
            SessionError: another chat uses it, it is not a session file, or cannot be written.
        """
        check_name(path)
        self._place = SessionPlace(path, cache_folder)
        try:
            self._place.try_writing()
        except BaseException:
            self._place.close()
            raise
        self._cache_folder = cache_folder
        self._model_id: str | None = None
        self._kept: SessionRecord | None = None
        self.path = path
        self.exists = path.exists()

    def __enter__(self) -> SessionKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.close()

    def loaded(self, session: Session) -> None:
        """The conversation was read from the file just now."""
        self._place.saw()
        self._kept = session.record()

    def keep(self, session: Session) -> None:
        """Write the turns to the disk if they differ from those in the file.

        Raises:
            SessionError: they cannot be written, or another program changed the file.
        """
        record = session.record()
        if record == self._kept or not (record.turns or self.exists):
            return
        self._refuse_changed()
        if self._model_id is None:
            self._model_id = name_model(session.engine.info.path)
        save_turns(self.path, session, self._model_id, self._cache_folder)
        self._kept, self.exists = record, True

    def save(self, session: Session) -> tuple[Path, int] | None:
        """Keep everything, at the end. Returns where and its bytes; None if nothing changed.

        If another program changed the file, the conversation goes into a new one next to it.

        Raises:
            SessionError: it cannot be written.
        """
        if not session.changed or not (session.n_turns or self.exists):
            return None
        path = _free_sibling(self.path) if self._place.is_changed() else self.path
        return path, save_session(path, session, session.engine.info.path, self._cache_folder)

    def _refuse_changed(self) -> None:
        if self._place.is_changed():
            raise SessionError(
                f"{self.path}: another program changed it since this chat read it; it is left as "
                "it is, and this conversation is saved next to it at the end"
            )


def _free_sibling(path: Path) -> Path:
    number = 1
    while os.path.lexists(sibling := path.with_name(f"{path.name}.{number}")):
        number += 1
    return sibling
