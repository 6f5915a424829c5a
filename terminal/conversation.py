"""The chat's loop: entries and commands in, replies out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import console, render
from .chat_commands import ChatEnd, ChatState, completions, obey
from .line_editor import read_entries

if TYPE_CHECKING:
    from ..runtime.chat.session import Session
    from ..runtime.settings import SamplingSettings, StopSettings

_SEEDS = 0xFFFFFFFF


def converse(
    session: Session, sampling: SamplingSettings, stops: StopSettings, history: Path
) -> None:
    """Answer line by line until /quit, Ctrl-D or the end of the pipe.

    Args:
        session: the conversation.
        sampling: how replies are drawn, until /set changes it.
        stops: when replies end.
        history: a file for what is typed on a terminal.
    """
    chat = ChatState(session, sampling, stops)
    while True:
        try:
            return _answer_entries(chat, history)
        except ChatEnd:
            return
        except KeyboardInterrupt:
            # between a reply and the next prompt; with a pipe, nobody can go on
            if not console.stdin_is_terminal():
                raise


def history_file() -> Path:
    """Where what is typed on a terminal is kept."""
    from ..cache import cache_folder

    return cache_folder() / "chat_history"


def answer_one(
    session: Session, message: str, sampling: SamplingSettings, stops: StopSettings
) -> bool:
    """Answer one message: the reply to stdout, what it cost to stderr.

    Returns whether Ctrl-C ended the reply.
    """
    from ..runtime.generate import finished

    stopped = _print_reply(ChatState(session, sampling, stops), message, "-n raises that")
    session.keep()
    console.note(render.statistics_line(finished(session.last, "")))
    if line := render.speculation_line(session.engine):
        console.note(line)
    console.notes(session.engine.take_notes())
    return stopped


def _answer_entries(chat: ChatState, history: Path) -> None:
    from ..native.errors import ModelChanged, NativeError
    from ..runtime.errors import RuntimeFailure

    for entry in read_entries("> ", completions(), history):
        # whatever fails, the conversation goes on
        try:
            if entry is None:
                console.note("Ctrl-D or /quit ends the program.")
                message = None
            elif entry.is_command:
                message = obey(chat, entry.text)
            else:
                message, chat.attempts = entry.text, 0
            # with a pipe, nobody can go on
            stopped = message and _print_reply(chat, message, "/set max_tokens raises that")
            if stopped and not console.stdin_is_terminal():
                raise KeyboardInterrupt
            chat.session.keep()
        except ModelChanged:
            raise  # every further turn would fail too
        except (RuntimeFailure, NativeError) as error:
            console.fail(str(error))
        console.notes(chat.session.engine.take_notes())


def _print_reply(chat: ChatState, message: str, raise_limit: str) -> bool:
    """Print a reply as it is written; returns whether Ctrl-C ended it.

    ``raise_limit`` tells the user how to allow longer replies.
    """
    from ..runtime.generate import FinishReason
    from ..runtime.text import without_first_space

    session, sampling = chat.session, chat.sampling
    if sampling.seed is not None:
        # a different draw, but a repeatable one
        sampling = replace(sampling, seed=(sampling.seed + chat.attempts) % _SEEDS)
    reply = session.reply(message, sampling, chat.stops)
    interrupted = False
    try:
        wrap = console.word_wrap()
        for text in without_first_space(reply):
            console.answer(text, end="", wrap=wrap)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        reply.close()
    console.answer("")
    if session.dropped_turns:
        oldest = "turn was" if session.dropped_turns == 1 else f"{session.dropped_turns} turns were"
        console.paragraph(f"(the context is full: the oldest {oldest} dropped)")
    reason = session.last.finish_reason
    if reason is FinishReason.CONTEXT:
        console.paragraph("(the context is full: the reply was cut)")
    elif reason is FinishReason.LENGTH:
        console.paragraph(f"(cut at {chat.stops.max_tokens} tokens; {raise_limit})")
    stopped = interrupted or reason is FinishReason.INTERRUPT
    if stopped:
        console.note("(stopped)")
    return stopped
