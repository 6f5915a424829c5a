"""The commands of a chat: one table, which /help and Tab completion use too."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..runtime.settings import CONSTRAINTS, NO_ADAPTER, SAMPLER_SETTINGS
from ..sizes import read_whole, size_text
from . import console, render
from .line_editor import FILES

if TYPE_CHECKING:
    from ..runtime.chat.session import Session
    from ..runtime.settings import SamplingSettings, StopSettings

#: What a command works on.
Chat = TypeVar("Chat")

_LONGEST_QUOTE = 60
#: The value of a constraint that is not set.
_NONE = "none"


@dataclass(slots=True)
class ChatState:
    """A conversation and how its replies are drawn. ``attempts`` counts /retry of one message."""

    session: Session
    sampling: SamplingSettings
    stops: StopSettings
    attempts: int = 0


class ChatEnd(Exception):
    """The user ends the chat."""


@dataclass(frozen=True, slots=True)
class Command(Generic[Chat]):
    """A command: its name, what may follow it, what it does.

    ``run`` gets what follows, and may return a message to answer. An ``argument`` in brackets is
    optional.
    """

    name: str
    argument: str
    help: str
    run: Callable[[Chat, str], str | None]
    words: tuple[str, ...] = ()


def obey(chat: ChatState, line: str) -> str | None:
    """Run a command line of a chat with a model that is loaded; see :func:`obey_one_of`."""
    return obey_one_of(COMMANDS, chat, line)


def obey_one_of(commands: Sequence[Command[Chat]], chat: Chat, line: str) -> str | None:
    """Run a command line. Returns a message to answer now, if any.

    Raises:
        ChatEnd: the chat is over.
        RuntimeFailure: the command failed.
    """
    name, *rest = line.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    command = next((c for c in commands if c.name == name), None)
    if command is None:
        # without the slash, which all have in common
        near = difflib.get_close_matches(name[1:], [c.name[1:] for c in commands], n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        console.note(f"{name}: no such command; {hint}")
        return None
    optional = not command.argument or command.argument.startswith("[")
    if bool(argument) > bool(command.argument) or (not argument and not optional):
        usage = f"{name} {command.argument}" if command.argument else f"{name} alone"
        console.note(f"{name}: expected {usage}")
        return None
    return command.run(chat, argument)


def completions() -> dict[str, tuple[str, ...]]:
    """Every command's name with the words that may follow it."""
    return {command.name: command.words for command in COMMANDS}


# ---- the conversation


def _help(chat: ChatState, argument: str) -> None:
    show_help(COMMANDS)


def show_help(commands: Sequence[Command[Any]]) -> None:
    """List commands and keys."""
    rows = [(f"{c.name} {c.argument}".strip(), c.help) for c in commands]
    console.definitions([*rows, *_KEYS])


def _reset(chat: ChatState, argument: str) -> None:
    chat.session.reset()
    console.note("The conversation starts over.")


def _undo(chat: ChatState, argument: str) -> None:
    turn = chat.session.undo()
    if turn is None:
        console.note("There is no turn to undo.")
    else:
        console.note(f"Forgotten: {quoted(turn.message)}")


def _retry(chat: ChatState, argument: str) -> str | None:
    turn = chat.session.undo()
    if turn is None:
        console.note("There is no turn to answer again.")
        return None
    chat.attempts += 1
    if chat.sampling.temperature == 0:
        console.note("note: temperature 0 gives the same reply again; /set temperature 0.8")
    return turn.message


def _system(chat: ChatState, argument: str) -> None:
    session = chat.session
    if not argument:
        console.note(f"The system prompt: {session.system}" if session.system else
                     "There is no system prompt.")  # fmt: skip
        return
    session.system = "" if argument == _NONE else argument
    console.note("The system prompt is set." if session.system else
                 "The system prompt is removed.")  # fmt: skip


def quoted(text: str) -> str:
    """The beginning of a message, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "..."


# ---- settings


@dataclass(frozen=True, slots=True)
class _Setting:
    """What /set knows of a setting.

    ``owner`` is the record of a :class:`ChatState` that holds it; ``typed`` is the opposite of
    ``type``. ``unset`` is a word for what its default, which is no value, means.
    """

    owner: str
    type: Callable[[str], Any]
    noun: str
    typed: Callable[[Any], str]
    unset: str = ""
    default: Any = None

    @property
    def expected(self) -> str:
        """What may follow its name."""
        return f"{self.noun}, or {self.unset}" if self.unset else self.noun

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ValueError: it is no number.
        """
        return self.default if self.unset and text == self.unset else self.type(text)

    def shown(self, value: Any) -> str:
        """A value in words."""
        is_unset = self.unset and value == self.default
        return self.unset if is_unset else quoted(self.typed(value))


_SETTINGS: dict[str, _Setting] = {
    **{
        row.name: _Setting("sampling", row.read, row.noun, row.typed, row.unset, row.default)
        for row in SAMPLER_SETTINGS.values()
        if row.option
    },
    "max_tokens": _Setting("stops", read_whole, "a whole number", str),
}


def _set(chat: ChatState, argument: str) -> None:
    from ..runtime.errors import SettingsError

    name, _, value = argument.partition(" ")
    name = name.replace("-", "_")
    if not name:
        return console.definitions([(each, _shown(chat, each)) for each in _SETTINGS])
    if name not in _SETTINGS:
        near = [each for each in _SETTINGS if name in each]
        near = near or difflib.get_close_matches(name, _SETTINGS, n=1)
        hint = (
            f"no such setting; did you mean {' or '.join(near)}?"
            if near
            else f"expected one of {', '.join(_SETTINGS)}"
        )
        raise SettingsError(f"/set {name}: {hint}")
    if not value.strip():
        return console.note(f"{name} {_shown(chat, name)}")
    setting = _SETTINGS[name]
    try:
        parsed = setting.read(value.strip())
    except ValueError:
        raise SettingsError(f"/set {name} {value.strip()}: expected {setting.expected}") from None
    except SettingsError as error:
        raise SettingsError(error.spelled(f"/set {name}")) from None
    changes = {name: parsed}
    if name in CONSTRAINTS and parsed:
        # the new one replaces another
        changes |= {each: "" for each, _ in chat.sampling.constraints if each != name}
    owner = setting.owner
    try:
        setattr(chat, owner, replace(getattr(chat, owner), **changes))
    except SettingsError as error:
        raise SettingsError(error.spelled(f"/set {name}")) from None
    for other in changes.keys() - {name}:
        console.note(f"{other} {_shown(chat, other)}")
    console.note(f"{name} {_shown(chat, name)}")


def _shown(chat: ChatState, name: str) -> str:
    setting = _SETTINGS[name]
    return setting.shown(getattr(getattr(chat, setting.owner), name))


def _adapter(chat: ChatState, argument: str) -> None:
    from ..runtime.errors import SettingsError

    engine = chat.session.engine
    if argument:
        try:
            engine.use_adapter("" if argument == NO_ADAPTER else argument)
        except SettingsError as error:
            raise SettingsError(error.spelled("/adapter")) from None
    known = ", ".join((*engine.info.adapters, NO_ADAPTER)) if engine.info.adapters else "none"
    console.note(f"adapter {engine.adapter or NO_ADAPTER} (loaded: {known})")


# ---- figures


def _stats(chat: ChatState, argument: str) -> None:
    from ..runtime.generate import finished

    console.note(render.statistics_line(finished(chat.session.last, "")))
    console.note(render.memory_line(chat.session.engine.memory()))
    console.note(render.kernels_line(chat.session.engine.info.kernels))
    if line := render.speculation_line(chat.session.engine):
        console.note(line)


def _kv(chat: ChatState, argument: str) -> None:
    console.note(render.kv_line(chat.session.engine.kv))


# ---- files


def _save(chat: ChatState, argument: str) -> None:
    save(chat.session, _path("/save", argument))


def _load(chat: ChatState, argument: str) -> None:
    load(chat.session, _path("/load", argument))
    # --session holds another conversation
    chat.session.changed = True


def _path(verb: str, name: str) -> Path:
    from ..runtime.errors import SessionError

    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise SessionError(f"{verb} {name}: there is no such home folder") from error


def save(session: Session, path: Path) -> None:
    """Keep the conversation in a file."""
    from ..cache import cache_folder
    from ..runtime.chat.session_file import save_session

    note_saved(session, path, save_session(path, session, session.engine.info.path, cache_folder()))


def note_saved(session: Session, path: Path, n_bytes: int) -> None:
    """Say what a file now holds."""
    console.note(f"saved {_turns(session)} in {path}, {size_text(n_bytes)}")


def load(session: Session, path: Path) -> None:
    """Continue the conversation in a file; the session then counts as not ``changed``."""
    from ..cache import cache_folder
    from ..runtime.chat.session_file import load_session

    has_rows = load_session(path, session, session.engine.info.path, cache_folder())
    session.changed = False
    console.notes(session.engine.take_notes())
    console.note(f"continuing {_turns(session)} from {path}")
    if not has_rows:
        console.note(
            "note: it did not end cleanly: its turns are there, and are computed again with the "
            "next message"
        )


def _turns(session: Session) -> str:
    return "1 turn" if session.n_turns == 1 else f"{session.n_turns} turns"


def _quit(chat: ChatState, argument: str) -> None:
    raise ChatEnd


COMMANDS: tuple[Command[ChatState], ...] = (
    Command("/help", "", "this list", _help),
    Command("/reset", "", "forget the conversation; the system prompt stays", _reset),
    Command("/undo", "", "forget the last turn", _undo),
    Command("/retry", "", "answer the last message again", _retry),
    Command("/system", "[TEXT]", "show or set the system prompt; none removes it", _system),
    Command("/set", "[NAME VALUE]", "show or change how replies are drawn", _set,
            tuple(_SETTINGS)),
    Command("/adapter", "[NAME]", "show or change the LoRA adapter; off uses none", _adapter),
    Command("/stats", "", "what the last reply cost", _stats),
    Command("/kv", "", "where the KV cache stands", _kv),
    Command("/save", "FILE", "keep the conversation", _save, FILES),
    Command("/load", "FILE", "continue another", _load, FILES),
    Command("/quit", "", "end (so does Ctrl-D)", _quit),
)  # fmt: skip

_KEYS = (
    ("Ctrl-C", "end the reply"),
    ("Alt-Enter", "break the line"),
    ('"""', "begin and end a block of lines"),
)
