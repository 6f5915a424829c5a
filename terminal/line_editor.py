"""What is typed in a chat: lines with editing, history and completion, blocks, or a pipe's lines.

On a terminal: arrows and Ctrl-R go through what was typed before, in earlier runs too; Tab
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
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from . import console
from .harmless import printable

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings

_CONTINUED = "... "
_QUOTES = '"""'
_OPENS_BLOCK = re.compile(rf"\s*(/\w+\s+)?{_QUOTES}")
#: Words that may follow a command, or FILES where file names may.
FILES = ("FILES",)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was entered at once. In a block, a / does not begin a command."""

    text: str
    is_command: bool


class Entries(Protocol):
    """What was entered before, for prompt_toolkit."""

    def remember(self, entry: str) -> None:
        """Add an entry, of one line or more, unless it repeats the last one."""
        ...


class _Ended(Exception):
    """Nothing more will be entered."""


def read_entries(
    prompt: str, commands: Mapping[str, tuple[str, ...]], history: Path
) -> Iterator[Entry | None]:
    """What a person enters, until Ctrl-D or the end of the pipe; None for Ctrl-C.

    Args:
        prompt: shown in front of a line.
        commands: names to complete, each with the words that may follow it.
        history: a file for what was typed, on a terminal only.

    Raises:
        KeyboardInterrupt: Ctrl-C if stdin is a pipe.
    """
    shown = console.prompt_stream()
    if not console.stdin_is_terminal() or shown is None:
        ask: Callable[[str], str] = _read_pipe
        remember: Callable[[], None] = _forget
        swallow: tuple[type[BaseException], ...] = ()
    else:
        ask, remember = _terminal(shown, commands, history)
        swallow = (KeyboardInterrupt,)
    while True:
        entry: Entry | None = None
        ended = False
        try:
            entry = _read_entry(prompt, ask)
        except swallow:
            pass
        except _Ended:
            ended = True
        remember()  # before the answer, which may be long
        if ended:
            return
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
    # the quotes may be on lines of their own
    text = "\n".join(lines).removeprefix("\n").removesuffix("\n")
    return Entry(command + text, bool(command))


def _forget() -> None:
    """A pipe has no history."""


def _read_pipe(_prompt: str) -> str:
    data = console.read_line()
    if not data:
        raise _Ended
    return data.decode("utf-8", "replace").rstrip("\r\n")


def _terminal(
    shown: TextIO, commands: Mapping[str, tuple[str, ...]], history: Path
) -> tuple[Callable[[str], str], Callable[[], None]]:
    """A function that asks for a line, and one that then remembers the lines of an entry as one."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    output = Vt100_Output.from_pty(shown, term=os.environ.get("TERM"))
    # asking the terminal for the cursor position would keep it raw after Enter until it answers,
    # and a Ctrl-C in that time would be lost
    output.enable_cpr = False
    kept: Any = _open_history(history)
    lines: list[str] = []
    session: PromptSession[Any] = PromptSession(
        history=kept, completer=_completer(commands), output=output,
        key_bindings=_key_bindings(), multiline=True, prompt_continuation=_continuation,
        complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE,
    )  # fmt: skip

    def ask(prompt: str) -> str:
        try:
            line = _encodable(str(session.prompt(prompt)))
        except EOFError:
            raise _Ended from None
        lines.append(line)
        return line

    def remember() -> None:
        kept.remember("\n".join(lines))
        lines.clear()

    return ask, remember


def _encodable(text: str) -> str:
    """The text without the halves of characters that a terminal may send."""
    return text.encode("utf-8", "replace").decode()


def _continuation(_width: int, _line: int, wrapped: int) -> str:
    """What precedes a further line; nothing if the line is only wrapped."""
    return "" if wrapped else _CONTINUED


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus, has_selection
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()
    # not while searching the history
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def enter(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("backspace", filter=typing & ~has_selection)
    def backspace(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        for _ in range(event.arg):
            before = buffer.document.text_before_cursor
            buffer.delete_before_cursor(max(1, len(_last_grapheme(before))))

    @bindings.add("delete", filter=typing & ~has_selection)
    def delete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        for _ in range(event.arg):
            buffer.delete(max(1, len(_first_grapheme(buffer.document.text_after_cursor))))

    @bindings.add("left", filter=typing)
    def left(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        for _ in range(event.arg):
            buffer.cursor_left(len(_last_grapheme(buffer.document.current_line_before_cursor)))

    @bindings.add("right", filter=typing)
    def right(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        for _ in range(event.arg):
            buffer.cursor_right(len(_first_grapheme(buffer.document.current_line_after_cursor)))

    @bindings.add("escape", "enter", filter=typing)
    @bindings.add("escape", "c-j", filter=typing)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _first_grapheme(text: str) -> str:
    """What a person sees as the first letter: a family of emoji, a letter with its accents."""
    from wcwidth import iter_graphemes

    return next(iter(iter_graphemes(text)), "")


def _last_grapheme(text: str) -> str:
    """The last one, likewise."""
    from wcwidth import grapheme_boundary_before

    return text[grapheme_boundary_before(text, len(text)) :] if text else ""


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
                for found in paths.get_completions(Document(argument), complete_event):
                    shown = printable(found.display_text)
                    yield Completion(found.text, found.start_position, display=shown)
                return
            begun = argument if space else command
            for word in words if begun or space else ():
                if word.startswith(begun):
                    goes_on = space or commands[word]
                    yield Completion(f"{word} " if goes_on else word, -len(begun), display=word)

    return Commands()


def _open_history(path: Path) -> Entries:
    """The history in a file that only its owner can read; in memory if that is impossible."""
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    class Whole(History):
        """Takes whole entries; ignores the single lines that the editor hands over."""

        def append_string(self, string: str) -> None:
            pass

        def remember(self, entry: str) -> None:
            if entry.strip() and self.get_strings()[-1:] != [entry]:
                super().append_string(entry)

    class InFile(Whole, FileHistory):
        def store_string(self, string: str) -> None:
            # neither a full disk nor (in older versions of prompt_toolkit) half a character is a
            # reason to end a conversation
            with suppress(OSError):
                super().store_string(_encodable(string))

    class InMemory(Whole, InMemoryHistory):
        pass

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        console.note(f"note: {path}: {error.strerror}; what is typed is not kept")
        return InMemory()
    return InFile(str(path))
