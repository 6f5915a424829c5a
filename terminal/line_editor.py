"""What is typed in a chat: lines with editing, history and completion, blocks, or a pipe's lines.

On a terminal: arrows and Ctrl-R go through what was typed before, also in earlier runs; Tab
completes commands; Alt-Enter (or Esc, Enter) breaks the line. Everywhere: a line that begins with
\"\"\" opens a block, which ends with the line that ends with \"\"\".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import console

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_CONTINUED = "... "
_QUOTES = '"""'
_OPENS_BLOCK = re.compile(rf"\s*(/\w+\s+)?{_QUOTES}")
#: Words that may follow a command, or FILES where file names may.
FILES = ("FILES",)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was entered at once. In a block, a / begins no command."""

    text: str
    is_command: bool


class _Ended(Exception):
    """Nothing more will be entered."""


def read_entries(
    prompt: str, commands: Mapping[str, tuple[str, ...]], history: Path
) -> Iterator[Entry | None]:
    """What a person enters, until Ctrl-D or the end of the pipe; None for Ctrl-C.

    Args:
        prompt: what stands in front of a line.
        commands: names to complete, each with the words that may follow it.
        history: a file for what was typed, on a terminal only.

    Raises:
        KeyboardInterrupt: Ctrl-C where stdin is a pipe.
    """
    shown = console.prompt_stream()
    if not console.stdin_is_terminal() or shown is None:
        ask: Callable[[str], str] = _read_pipe
        swallow: tuple[type[BaseException], ...] = ()
    else:
        ask, swallow = _terminal(shown, commands, history), (KeyboardInterrupt,)
    while True:
        try:
            entry = _read_entry(prompt, ask)
        except swallow:
            yield None
        except _Ended:
            return
        else:
            yield entry


def _read_entry(prompt: str, ask: Callable[[str], str]) -> Entry:
    line = ask(prompt)
    opening = _OPENS_BLOCK.match(line)
    if not opening:
        text = line.strip()
        return Entry(text, text.startswith("/"))
    command = opening.group(1) or ""
    rest = line[opening.end() :]
    lines = []
    while not rest.rstrip().endswith(_QUOTES):
        lines.append(rest)
        try:
            rest = ask(_CONTINUED)
        except _Ended:
            if ask is not _read_pipe:
                raise
            console.note(f"note: the block was not ended with {_QUOTES}")
            rest = _QUOTES
    lines.append(rest.rstrip().removesuffix(_QUOTES))
    # the quotes may stand on lines of their own
    text = "\n".join(lines).removeprefix("\n").removesuffix("\n")
    return Entry(command + text, bool(command))


def _read_pipe(_prompt: str) -> str:
    data = console.read_line()
    if not data:
        raise _Ended
    return data.decode("utf-8", "replace").rstrip("\r\n")


def _terminal(
    shown: TextIO, commands: Mapping[str, tuple[str, ...]], history: Path
) -> Callable[[str], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    output = Vt100_Output.from_pty(shown, term=os.environ.get("TERM"))
    # asking the terminal for the cursor's place would keep it raw after Enter until it answers,
    # and a Ctrl-C in that time would be lost
    output.enable_cpr = False
    session: PromptSession[Any] = PromptSession(
        history=_open_history(history), completer=_completer(commands), output=output,
        key_bindings=_key_bindings(), multiline=True, prompt_continuation=_continuation,
        complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE,
    )  # fmt: skip

    def ask(prompt: str) -> str:
        try:
            return _whole(str(session.prompt(prompt)))
        except EOFError:
            raise _Ended from None

    return ask


def _whole(text: str) -> str:
    """The text without the halves of characters that a terminal may send."""
    return text.encode("utf-8", "replace").decode()


def _continuation(_width: int, _line: int, wrapped: int) -> str:
    """What stands in front of a further line; nothing where one is only too long."""
    return "" if wrapped else _CONTINUED


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()
    # not where one searches the history
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def enter(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    @bindings.add("escape", "c-j", filter=typing)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _completer(commands: Mapping[str, tuple[str, ...]]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            command, space, argument = document.text_before_cursor.partition(" ")
            words = commands.get(command, ()) if space else tuple(commands)
            if words is FILES:
                yield from paths.get_completions(Document(argument), complete_event)
                return
            begun = argument if space else command
            for word in words if begun or space else ():
                if word.startswith(begun):
                    goes_on = space or commands[word]
                    yield Completion(f"{word} " if goes_on else word, -len(begun), display=word)

    return Commands()


def _open_history(path: Path) -> History:
    """The history in a file for its owner alone; in memory where there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class PrivateHistory(FileHistory):
        def store_string(self, string: str) -> None:
            # a full disk is no reason to end a conversation, nor is (in older prompt_toolkits) half
            # a character
            with suppress(OSError):
                super().store_string(_whole(string))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        console.note(f"note: {path}: {error.strerror}; what is typed is not kept")
        return InMemoryHistory()
    return PrivateHistory(str(path))
