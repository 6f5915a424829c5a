"""The chat's loop: no line that is typed ends it, but Ctrl-C on a pipe does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infer_os.models.styles import STYLES
from infer_os.native.errors import StateError
from infer_os.runtime.chat import session_file
from infer_os.runtime.chat.session import Session
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.terminal import chat_commands, console, conversation
from infer_os.terminal.line_editor import Entry

Chat = Callable[..., tuple[str, str]]
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture
def chat(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Chat:
    """Type lines; returns what came on stdout and on stderr."""
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path))

    def talk(
        session: Session,
        *lines: str,
        terminal: bool = False,
        sampling: SamplingSettings = GREEDY,
    ) -> tuple[str, str]:
        entries = [Entry(line, line.startswith("/")) for line in lines]
        monkeypatch.setattr(conversation, "read_entries", lambda *_: iter(entries))
        monkeypatch.setattr(console, "stdin_is_terminal", lambda: terminal)
        conversation.converse(session, sampling, StopSettings(20), tmp_path / "history")
        out, err = capfdbinary.readouterr()
        return out.decode(), err.decode()

    return talk


def fake_session(reply: str = " hello") -> Session:
    return Session(FakeEngine(saying(reply), 500), STYLES["dialogue"])


@pytest.mark.parametrize("verb", ["/save", "/load"])
@pytest.mark.parametrize("name", ["~nosuch-user/x", "n" * 300, "zero\0byte", "/dev/null/x", "/"])
def test_a_name_that_cannot_be_does_not_end_the_chat(chat: Chat, verb: str, name: str) -> None:
    out, err = chat(fake_session(), f"{verb} {name}", "hi")
    assert out == "hello\n"
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("error", [StateError("gone"), SettingsError("gone")])
@pytest.mark.parametrize(
    ("command", "method"), [("/stats", "memory"), ("/kv", "kv"), ("/reset", "reset")]
)
def test_no_command_ends_the_chat(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, command: str, method: str, error: Exception
) -> None:
    def fail(_self: object) -> None:
        raise error

    owner = Session if method == "reset" else FakeEngine
    monkeypatch.setattr(owner, method, property(fail) if method == "kv" else fail)
    out, err = chat(fake_session(), command, "hi")
    assert out == "hello\n"
    assert err.splitlines()[-1] == "error: gone"


def interrupted(tokens: Sequence[int]) -> int:
    raise KeyboardInterrupt


def test_an_interrupted_reply_ends_a_chat_on_a_pipe(
    chat: Chat, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    session = Session(FakeEngine(interrupted, 500), STYLES["dialogue"])
    with pytest.raises(KeyboardInterrupt):
        chat(session, "hi", "never asked")
    assert b"(stopped)" in capfdbinary.readouterr().err
    assert session.n_turns == 1


def test_an_interrupted_reply_does_not_end_a_chat_on_a_terminal(chat: Chat) -> None:
    session = Session(FakeEngine(interrupted, 500), STYLES["dialogue"])
    _out, err = chat(session, "hi", "again", terminal=True)
    assert err.count("(stopped)") == session.n_turns == 2


def test_an_interrupt_while_the_last_chunk_is_printed_counts(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may begin a stop string is held back until the model has ended its reply."""

    def interrupt(text: str, end: str = "\n", wrap: object = None) -> None:
        if "Us" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(console, "answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat(fake_session(" hello\nUs"), "hi")


def test_an_interrupt_while_printing_ends_the_reply_alone(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def interrupt(text: str, end: str = "\n", wrap: object = None) -> None:
        printed.append(text)
        if len(printed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(console, "answer", interrupt)
    session = fake_session()
    _out, err = chat(session, "hi", terminal=True)
    assert err == "(stopped)\n"
    assert session.n_turns == 1


def test_another_conversation_is_a_change_and_its_own_is_none(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fake_session().record()
    monkeypatch.setattr(
        session_file, "load_session", lambda path, session, model, folder: session.resume(other)
    )
    session = fake_session()
    chat_commands.load(session, Path("own"))
    assert not session.changed
    chat(session, "/load other")
    assert session.changed
