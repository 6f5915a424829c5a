"""A conversation with a model that a server has loaded: ``infer-os chat --server URL``.

In goes what is typed; out come replies, as the server writes them. The conversation is kept here
and sent whole with each message, of which the server computes only what is new to it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.errors import SettingsError
from ..serve.client import RemoteAnswer, read_status, stream_answer
from ..serve.errors import ServerFailure
from ..terminal import console
from ..terminal.chat_commands import ChatEnd, Command, obey_one_of, quoted, show_help
from ..terminal.line_editor import read_entries
from .serving import api_key


@dataclass(slots=True)
class RemoteChat:
    """A conversation: the server's address, what it is asked for, and what was said so far.

    ``fields`` are those of each request that say how replies are drawn.
    """

    server: str
    model: str
    system: str
    fields: dict[str, Any]
    turns: list[tuple[str, str]] = field(default_factory=list)
    last: RemoteAnswer = field(default_factory=RemoteAnswer)

    def messages(self, message: str) -> list[dict[str, str]]:
        """The conversation so far, and another message of the user."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for asked, reply in self.turns:
            said.append({"role": "user", "content": asked})
            said.append({"role": "assistant", "content": reply})
        return [*said, {"role": "user", "content": message}]


def converse_with_server(chat: RemoteChat, history: Path) -> None:
    """Answer line by line until /quit, Ctrl-D or the end of the pipe.

    Args:
        chat: the conversation.
        history: a file for what is typed on a terminal.

    Raises:
        ServerFailure: nobody answers at the address.
        SettingsError: it is no address.
    """
    now = read_status(chat.server, api_key(None))
    console.paragraph(
        f"{now['model']} on {chat.server}: {now['source']}, {now['context']} tokens of context"
    )
    console.note("/help lists commands, Ctrl-D ends.")
    while True:
        try:
            return _answer_entries(chat, history)
        except ChatEnd:
            return
        except KeyboardInterrupt:
            # between a reply and the next prompt; with a pipe, nobody can go on
            if not console.stdin_is_terminal():
                raise


def _answer_entries(chat: RemoteChat, history: Path) -> None:
    for entry in read_entries("> ", {command.name: () for command in COMMANDS}, history):
        if entry is None:
            console.note("Ctrl-D or /quit ends the program.")
            continue
        message: str | None = entry.text
        if entry.is_command:
            message = obey_one_of(COMMANDS, chat, entry.text)
        try:
            stopped = message is not None and _print_reply(chat, message)
        except (ServerFailure, SettingsError) as error:
            # the message was not answered, and the conversation goes on without it
            console.fail(str(error))
            continue
        # with a pipe, nobody can go on
        if stopped and not console.stdin_is_terminal():
            raise KeyboardInterrupt


def _print_reply(chat: RemoteChat, message: str) -> bool:
    """Print a reply as it is written, and keep it; returns whether Ctrl-C ended it."""
    body = {"model": chat.model, "messages": chat.messages(message), **chat.fields}
    state, pieces, stopped = RemoteAnswer(), list[str](), False
    wrap = console.word_wrap()
    path = "/v1/chat/completions"
    try:
        with closing(stream_answer(chat.server, api_key(None), path, body, state)) as answer:
            for piece in answer:
                pieces.append(piece)
                console.answer(piece, end="", wrap=wrap)
    except KeyboardInterrupt:
        stopped = True
    finally:
        if any(pieces) or state.finish_reason or stopped:
            console.answer("")
    chat.turns.append((message, "".join(pieces)))
    chat.last = state
    if state.finish_reason == "length":
        console.paragraph("(cut at its limit; -n raises that)")
    if stopped:
        console.note("(stopped)")
    return stopped


# ---- commands


def _help(chat: RemoteChat, argument: str) -> None:
    show_help(COMMANDS)


def _reset(chat: RemoteChat, argument: str) -> None:
    chat.turns.clear()
    console.note("The conversation starts over.")


def _undo(chat: RemoteChat, argument: str) -> None:
    if not chat.turns:
        console.note("There is no turn to undo.")
        return
    console.note(f"Forgotten: {quoted(chat.turns.pop()[0])}")


def _retry(chat: RemoteChat, argument: str) -> str | None:
    if not chat.turns:
        console.note("There is no turn to answer again.")
        return None
    return chat.turns.pop()[0]


def _system(chat: RemoteChat, argument: str) -> None:
    if argument:
        chat.system = "" if argument == "none" else argument
    console.note(f"The system prompt: {chat.system}" if chat.system else
                 "There is no system prompt.")  # fmt: skip


def _stats(chat: RemoteChat, argument: str) -> None:
    console.note(f"{chat.last.completion_tokens} tokens, after {chat.last.prompt_tokens}")


def _quit(chat: RemoteChat, argument: str) -> None:
    raise ChatEnd


COMMANDS: tuple[Command[RemoteChat], ...] = (
    Command("/help", "", "this list", _help),
    Command("/reset", "", "forget the conversation; the system prompt stays", _reset),
    Command("/undo", "", "forget the last turn", _undo),
    Command("/retry", "", "answer the last message again", _retry),
    Command("/system", "[TEXT]", "show or set the system prompt; none removes it", _system),
    Command("/stats", "", "what the last reply cost", _stats),
    Command("/quit", "", "end (so does Ctrl-D)", _quit),
)
