"""The chat's loop in the terminal: lines and slash commands in, replies out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import console, render

if TYPE_CHECKING:
    from .runtime.session import Session
    from .runtime.settings import SamplingSettings, StopSettings

_CHAT_HELP = """/help   this list
/reset  forget the conversation; the system prompt stays
/stats  what the last reply cost
/kv     where the KV cache stands
/save FILE, /load FILE  keep the conversation, or continue another
/quit   end (so does Ctrl-D)
Ctrl-C  end the reply"""


def converse(session: Session, sampling: SamplingSettings, stops: StopSettings) -> None:
    """Answer line by line until /quit, Ctrl-D or the end of the pipe."""
    while True:
        try:
            return _answer_lines(session, sampling, stops)
        except KeyboardInterrupt:
            # between a reply and the next prompt; a pipe has nobody to go on with
            if not console.stdin_is_terminal():
                raise


def _answer_lines(session: Session, sampling: SamplingSettings, stops: StopSettings) -> None:
    from .native.errors import NativeError
    from .runtime.errors import RuntimeFailure

    for line in console.read_lines("> "):
        text = line.strip() if line is not None else None
        if text == "/quit":
            return
        # whatever fails, the conversation goes on
        try:
            if text is None:
                console.note("Ctrl-D or /quit ends the program.")
            elif text.startswith("/"):
                _obey(session, text)
            elif text:
                _print_reply(session, text, sampling, stops)
        except (RuntimeFailure, NativeError) as error:
            console.fail(str(error))
        console.notes(session.engine.take_notes())


def _obey(session: Session, command: str) -> None:
    from .runtime.generate import finished

    match command:
        case "/help":
            console.note(_CHAT_HELP)
        case "/reset":
            session.reset()
            console.note("The conversation starts anew.")
        case "/stats":
            console.note(render.statistics_line(finished(session.last, "")))
            console.note(render.memory_line(session.engine.memory()))
            console.note(f"[own kernels {render.kernels_text(session.engine.info.kernels)}]")
        case "/kv":
            console.note(render.kv_line(session.engine.kv))
        case _ if command.startswith(("/save", "/load")):
            _keep_or_continue(session, command)
        case _:
            console.note(f"{command.split()[0]}: no such command; /help lists them")


def _keep_or_continue(session: Session, command: str) -> None:
    from .runtime.errors import SessionError

    verb, _, name = command.partition(" ")
    if verb not in ("/save", "/load") or not name.strip():
        return console.note(f"{verb}: expected /save FILE or /load FILE")
    try:
        path = Path(name.strip()).expanduser()
    except RuntimeError as error:
        raise SessionError(f"{verb} {name.strip()}: there is no such home folder") from error
    if verb == "/save":
        save(session, path)
    else:
        load(session, path)
        # what --session holds is another conversation
        session.changed = True


def save(session: Session, path: Path) -> None:
    """Keep the conversation in a file."""
    from .convert.source import cache_folder
    from .runtime.session_file import save_session

    n_bytes = save_session(path, session, session.engine.info.path, cache_folder())
    console.note(f"saved {session.n_turns} turns in {path}, {console.size(n_bytes)}")


def load(session: Session, path: Path) -> None:
    """Continue the conversation that a file keeps; it is not ``changed`` then."""
    from .convert.source import cache_folder
    from .runtime.session_file import load_session

    load_session(path, session, session.engine.info.path, cache_folder())
    session.changed = False
    console.notes(session.engine.take_notes())
    console.note(f"continuing {session.n_turns} turns from {path}")


def _print_reply(
    session: Session, message: str, sampling: SamplingSettings, stops: StopSettings
) -> None:
    reply = session.reply(message, sampling, stops)
    started = interrupted = False
    try:
        for chunk in reply:
            # models start a reply with the space that follows the colon
            text = chunk if started else chunk.lstrip()
            started = started or bool(text)
            console.answer(text, end="")
    except KeyboardInterrupt:
        interrupted = True
    finally:
        reply.close()
    console.answer("")
    if session.dropped_turns:
        console.note(
            f"(the context is full: the oldest {session.dropped_turns} turns were dropped)"
        )
    reason = session.last.finish_reason
    if interrupted or (reason is not None and reason.value == "interrupt"):
        console.note("(stopped)")
        # a pipe has nobody to go on with
        if not console.stdin_is_terminal():
            raise KeyboardInterrupt
