"""What is typed: blocks, the history's file, completion, broken lines; on pipes and terminals."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from infer_os.terminal import console, line_editor
from infer_os.terminal.line_editor import FILES, Entry, read_entries

COMMANDS = {"/save": FILES, "/set": ("temperature", "top_k"), "/stats": ()}

PROGRAM = """
import pathlib, sys
from infer_os.terminal.line_editor import FILES, read_entries
commands = {"/save": FILES, "/set": ("temperature", "top_k"), "/stats": ()}
for entry in read_entries("> ", commands, pathlib.Path(sys.argv[1])):
    print("GOT", ascii(entry and entry.text), entry and entry.is_command, flush=True)
print("DONE", flush=True)
"""


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[Entry | None]:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with os.fdopen(read, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        return list(read_entries("> ", COMMANDS, Path("/nonexistent/history")))


@pytest.mark.parametrize(
    ("typed", "entries"),
    [
        ("one\n  two \n", [("one", False), ("two", False)]),
        ("no end", [("no end", False)]),
        ("/stats\n /set x 1\n", [("/stats", True), ("/set x 1", True)]),
        ('"""\na\n\nb\n"""\nc\n', [("a\n\nb", False), ("c", False)]),
        ('"""a\nb"""\n', [("a\nb", False)]),
        ('"""one line"""\n', [("one line", False)]),
        ('"""/not a command"""\n', [("/not a command", False)]),
        ('/system """a\nb"""\n', [("/system a\nb", True)]),
        ('"""\n  kept  \n"""  \n', [("  kept  ", False)]),
        ('"""\n"""\n', [("", False)]),
        ('say """ twice\n', [('say """ twice', False)]),
        ("東京\n\udcff\n", [("東京", False), ("\ufffd", False)]),
        ("one\r\ntwo\r\n", [("one", False), ("two", False)]),
        ("\n", [("", False)]),
    ],
)  # fmt: skip
def test_entries_of_a_pipe(
    monkeypatch: pytest.MonkeyPatch, typed: str, entries: list[tuple[str, bool]]
) -> None:
    data = typed.encode("utf-8", "surrogateescape")
    assert piped(monkeypatch, data) == [Entry(*entry) for entry in entries]


def test_a_block_that_the_pipe_does_not_end_is_told_and_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert piped(monkeypatch, b'"""\na\nb\n') == [Entry("a\nb", False)]
    assert 'note: the block was not ended with """' in capsys.readouterr().err


def test_a_closed_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert list(read_entries("> ", COMMANDS, Path("x"))) == []


def test_an_interrupt_on_a_pipe_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(line_editor, "_read_pipe", interrupt)
    monkeypatch.setattr(console, "stdin_is_terminal", lambda: False)
    with pytest.raises(KeyboardInterrupt):
        list(read_entries("> ", COMMANDS, Path("x")))


# ---- on a terminal


class Typist:
    """Types into the program and reads what it got."""

    def __init__(self, history: Path) -> None:
        self.child: Any = pexpect.spawn(
            sys.executable, ["-c", PROGRAM, str(history)], dimensions=(24, 40),
            encoding="utf-8", timeout=30, env={**os.environ, "TERM": "xterm"}, cwd=history.parent,
        )  # fmt: skip
        self.ready()

    def ready(self) -> None:
        self.child.expect_exact("\x1b[?2004h")

    def got(self, keys: str) -> str:
        self.child.send(keys)
        self.child.expect(r"GOT ([^\r]*)\r")
        answer = str(self.child.match.group(1))
        self.ready()
        return answer

    def end(self) -> None:
        self.child.sendeof()
        self.child.expect_exact("DONE")
        self.child.expect_exact(pexpect.EOF)
        self.child.wait()
        assert self.child.exitstatus == 0


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    yield tmp_path / "cache" / "chat_history"
    os.umask(before)


@pytest.fixture
def typist(history: Path) -> Iterator[Typist]:
    history.parent.mkdir()
    typist = Typist(history)
    yield typist
    typist.child.close(force=True)


UP = "\x1b[A"


def test_lines_are_edited(typist: Typist) -> None:
    assert typist.got("hullo\x1b[D\x1b[D\x1b[D\x7fe\r") == "'hello' False"
    assert typist.got("/stats\r") == "'/stats' True"
    wide = "日本語" * 12  # over the width of the terminal
    assert typist.got(f"{wide}\x7f\r") == f"{wide[:-1]!a} False"
    typist.end()


@pytest.mark.parametrize("keys", ["\x1b\r", "\x1b\n"])
def test_alt_enter_breaks_the_line(typist: Typist, keys: str) -> None:
    assert typist.got(f"one{keys}two\r") == r"'one\ntwo' False"
    typist.end()


def test_a_byte_that_is_no_character(typist: Typist, history: Path) -> None:
    os.write(typist.child.child_fd, b"a\xffb")
    assert typist.got("\r") == "'a?b' False"
    typist.end()
    assert "+a?b\n" in history.read_text()


def test_a_block_over_lines(typist: Typist) -> None:
    for line in ('"""', "one", "two"):
        typist.child.send(line + "\r")
        typist.ready()
    assert typist.got('"""\r') == r"'one\ntwo' False"
    typist.end()


def test_what_is_pasted_is_one_entry(typist: Typist) -> None:
    assert typist.got("\x1b[200~a\nb\x1b[201~\r") == r"'a\nb' False"
    typist.end()


def test_an_interrupt_drops_the_line_or_the_block(typist: Typist) -> None:
    assert typist.got("half a line\x03") == "None None"
    typist.child.send('"""\r')
    typist.ready()
    assert typist.got("half a block\x03") == "None None"
    assert typist.got("whole\r") == "'whole' False"
    typist.end()


def test_a_resize_keeps_the_line(typist: Typist) -> None:
    typist.child.send("a line that is longer than twenty columns")
    typist.child.expect("(?s)t.*w.*e.*n.*t.*y.*m.*n.*s")
    typist.child.setwinsize(24, 20)
    assert typist.got("!\r") == "'a line that is longer than twenty columns!' False"
    typist.end()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("/sta\t", "/stats"), ("/set te\t0.5", "/set temperature 0.5"), ("/set \tx", "/set tx"),
        ("he\t", "he"),
        ("/sa\ttalk\t", "/save talk.session"), ("/save talk\t", "/save talk.session"),
    ],
)  # fmt: skip
def test_tab_completes(typist: Typist, history: Path, keys: str, line: str) -> None:
    (history.parent / "talk.session").write_bytes(b"")
    assert typist.got(keys + "\r") == f"{line!r} {line.startswith('/')}"
    typist.end()


def test_the_history_stays_in_a_private_file(typist: Typist, history: Path) -> None:
    typist.got("first\r")
    typist.got("two\x1b\rlines\r")
    typist.end()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = Typist(history)
    assert again.got(f"{UP}\r") == r"'two\nlines' False"
    assert again.got("\x12fir\r\r") == "'first' False"
    again.end()


def test_a_block_is_recalled_as_a_whole(typist: Typist, history: Path) -> None:
    typist.got("before\r")
    for line in ('"""', "one", "one", "", "  two"):
        typist.child.send(line + "\r")
        typist.ready()
    assert typist.got('"""\r') == r"'one\none\n\n  two' False"
    # the cursor stands in the last line of the block
    assert typist.got(f"{UP}\r") == r"'one\none\n\n  two' False"
    assert typist.got(f"{UP * 7}\r") == "'before' False"
    typist.end()
    entries = history.read_text().split("\n# ")
    assert [entry.count("\n+") for entry in entries[1:]] == [1, 6, 1]


FAMILY, FLAG, ACCENT = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1ef\U0001f1f5",
    "e\u0301",
)
LEFT, RIGHT, DELETE = "\x1b[D", "\x1b[C", "\x1b[3~"


@pytest.mark.parametrize("letter", [FAMILY, FLAG, ACCENT, "猫", "x"])
def test_a_letter_of_several_characters_is_one(typist: Typist, letter: str) -> None:
    for keys, line in (
        (f"a{letter}\x7f", "a"),
        (f"a{letter}{letter}\x7f", f"a{letter}"),
        (f"a{letter}{LEFT}b", f"ab{letter}"),
        (f"a{letter}{LEFT * 2}{RIGHT}b{RIGHT}c", f"ab{letter}c"),
        (f"a{letter}b{LEFT * 2}{DELETE}", "ab"),
        (f"a{LEFT * 5}\x7f{DELETE}{DELETE}b", "b"),
    ):
        assert typist.got(f"{keys}\r") == f"{line!a} False"
    typist.end()


def test_a_history_that_others_can_read_is_closed(history: Path) -> None:
    history.parent.mkdir()
    history.write_text("")
    history.chmod(0o644)
    typist = Typist(history)
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    typist.end()


def test_no_history_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    typist = Typist(tmp_path / "folder")
    typist.end()
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()
    typist = Typist(tmp_path / "folder")
    assert "Is a directory; what is typed is not kept" in " ".join(typist.child.before.split())
    assert typist.got("one\r") == "'one' False"
    assert typist.got(f"{UP}\r") == "'one' False"
    typist.end()


def test_a_pipe_keeps_no_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    piped(monkeypatch, b"secret\n")
    assert list(tmp_path.iterdir()) == []
