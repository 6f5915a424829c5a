"""A chat on a real terminal, compared whole: pexpect types, pyte shows what a person would see.

The model is scripted, a token per byte, so that every letter beyond ASCII spans several tokens.
"""

from __future__ import annotations

import os
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from infer_os.terminal.chat_commands import completions

PROGRAM = '''
import sys, time
from infer_os import cli
from infer_os.commands import loading
from infer_os.runtime.fake import END, FakeEngine

REPLIES = {
    "hello": " Hello! 東京は首都です。🎉 Grüße",
    "long": " 吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。",
    "forever": " I could go on and",
    "bye": " So long.",
}

class Scripted(FakeEngine):
    """Answers the last message; "forever" never ends, and "prefill" is never read to its end."""

    def feed(self, tokens):
        computed = super().feed(tokens)
        message = bytes(t for t in tokens if t != END).decode().rpartition("User: ")[2]
        self.message = message.removesuffix("\\nAssistant:")
        self.start = len(tokens)
        if self.message == "prefill":
            # a title, which no screen shows
            print("\\x1b]0;reading\\x07", end="", flush=True)
            time.sleep(60)
        return computed

    def sample(self, sampler):
        reply = REPLIES.get(self.message, " You said " + self.message).encode()
        said = len(self.tokens) - self.start
        if said < len(reply):
            return reply[said]
        if self.message == "forever":
            time.sleep(60)
        return END

engine = Scripted(lambda tokens: END, int(sys.argv.pop(1)))
loading.load_engine = lambda path, settings: (engine, 0.25)
cli.main()
'''


class Screen:
    """A chat in a terminal of this many columns."""

    def __init__(self, folder: Path, columns: int, n_ctx: int, *options: str) -> None:
        (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
        command = ["-u", str(folder / "program.py"), str(n_ctx), "chat", "m.gguf", *options]
        self.child: Any = pexpect.spawn(
            sys.executable, command, dimensions=(60, columns), timeout=30,
            env={**os.environ, "TERM": "xterm", "INFER_OS_CACHE": str(folder / "cache")},
        )  # fmt: skip
        self._screen = pyte.Screen(columns, 60)
        self._stream = pyte.ByteStream(self._screen)
        self.until("\x1b[?2004h")

    def until(self, text: str) -> None:
        self.child.expect_exact(text.encode())
        self._stream.feed(self.child.before + self.child.after)

    def type(self, text: str) -> None:
        """A line, up to the next prompt."""
        self.child.send(text + "\r")
        self.until("\x1b[?2004l")
        self.until("\x1b[?2004h")

    def stop(self, text: str, after: str) -> None:
        """A line, and Ctrl-C once ``after`` has come, up to the next prompt."""
        self.child.send(text + "\r")
        self.until("\x1b[?2004l")
        # the terminal takes Ctrl-C for a letter until prompt_toolkit has given it back
        while not termios.tcgetattr(self.child.child_fd)[3] & termios.ISIG:
            time.sleep(0.01)
        self.until(after)
        time.sleep(0.1)
        self.child.sendintr()
        self.until("\x1b[?2004h")

    def resize(self, columns: int) -> None:
        self.child.setwinsize(60, columns)
        self._screen.resize(60, columns)

    def end(self, key: str = "\x04") -> None:
        self.child.send(key)
        self.child.expect_exact(pexpect.EOF)
        self._stream.feed(self.child.before)
        self.child.wait()
        assert self.child.exitstatus == 0

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def call(columns: int, n_ctx: int, *options: str) -> Screen:
        screens.append(Screen(tmp_path, columns, n_ctx, *options))
        return screens[-1]

    yield call
    for screen in screens:
        screen.child.close(force=True)


WIDE = """\
m.gguf: Fake, 330 tokens of context, style dialogue, loaded in 0.2 s
/help lists commands, Ctrl-D ends.
> hello
Hello! 東京は首都です。🎉 Grüße
> 日本語を話せますか?
You said 日本語を話せますか?
> /undo
Forgotten: 日本語を話せますか?
> forever
I could go on and^C
(stopped)
> prefill
^C
(stopped)
> /undo
Forgotten: prefill
> long
吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。
> /retry
吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。
> \"\"\"
... two
... lines
... \"\"\"
You said two
lines
(the context is full: the oldest 2 turns were dropped)
> /system Be brief.
The system prompt is set.
> /set max_tokens 3
max_tokens 3
> bye
So
(cut at 3 tokens; /set max_tokens raises that)
> half
Ctrl-D or /quit ends the program.
>"""

NARROW = """\
m.gguf: Fake, 330 tokens of context,
style dialogue, loaded in 0.2 s
/help lists commands, Ctrl-D ends.
> hello
Hello! 東京は首都です。🎉 Grüße
> 日本語を話せますか?
You said 日本語を話せますか?
> /undo
Forgotten: 日本語を話せますか?
> forever
I could go on and^C
(stopped)
> prefill
^C
(stopped)
> /undo
Forgotten: prefill
> long
吾輩は猫である。名前はまだ無い。どこで生
れたか頓と見当がつかぬ。
> /retry
吾輩は猫である。名前はまだ無い。どこで生
れたか頓と見当がつかぬ。
> \"\"\"
... two
... lines
... \"\"\"
You said two
lines
(the context is full: the oldest 2 turns
were dropped)
> /system Be brief.
The system prompt is set.
> /set max_tokens 3
max_tokens 3
> bye
So
(cut at 3 tokens; /set max_tokens raises
that)
> half
Ctrl-D or /quit ends the program.
>"""


@pytest.mark.parametrize(("columns", "expected"), [(98, WIDE), (40, NARROW)])
def test_a_whole_chat(start: Callable[..., Screen], columns: int, expected: str) -> None:
    screen = start(columns, 330, "-n", "200")
    screen.type("hello")
    screen.type("日本語を話せますか?")
    screen.type("/undo")
    screen.stop("forever", after="go on and")
    screen.stop("prefill", after="reading\x07")
    for line in ("/undo", "long", "/retry", '"""', "two", "lines", '"""', "/system Be brief.",
                 "/set max_tokens 3", "bye"):  # fmt: skip
        screen.type(line)
    screen.child.send("half")
    screen.until("half")
    screen.child.send("\x03")
    screen.until("\x1b[?2004h")
    screen.end()
    assert screen.text == expected


def test_help_at_40_columns(start: Callable[..., Screen]) -> None:
    screen = start(40, 500)
    screen.type("/help")
    screen.end("/quit\r")
    lines = screen.text.splitlines()
    at = lines.index("/reset             forget the")
    assert lines[at + 1 : at + 3] == [
        "                   conversation; the",
        "                   system prompt stays",
    ]
    assert all(len(line) <= 40 for line in lines)


def test_a_resize_in_the_midst_of_a_chat(start: Callable[..., Screen]) -> None:
    screen = start(80, 500)
    screen.type("hello")
    screen.resize(40)
    screen.type("日本語を話せますか? 日本語を話せますか?")
    screen.end()
    assert screen.text.splitlines()[-5:] == [
        "> 日本語を話せますか? 日本語を話せますか",
        "?",
        "You said 日本語を話せますか? 日本語を話",
        "せますか?",
        ">",
    ]


def test_errors_and_figures_at_40_columns_cut_no_word(start: Callable[..., Screen]) -> None:
    screen = start(40, 500)
    for line in ("hello", "/set nope 1", "/stats"):
        screen.type(line)
    screen.end()
    lines = screen.text.splitlines()
    at, end = lines.index("> /set nope 1"), lines.index("> /stats")
    names = ", ".join(completions()["/set"])
    said = f"error: /set nope: expected one of {names}"
    assert lines[at + 1 : end] == textwrap.wrap(said, 40)
    assert {"temperature,", "repeat_penalty,", "max_tokens"} <= set(said.split())
    figures = " ".join(lines[end + 1 :])
    assert all(f" {word} " in figures for word in ("tokens", "RSS", "anonymous,", "planned"))


def test_words_are_not_cut_at_the_edge(start: Callable[..., Screen]) -> None:
    screen = start(30, 500, "-n", "200")
    screen.type("acknowledged universally by everybody")
    screen.end()
    assert screen.text.splitlines()[-4:] == [
        "everybody",
        "You said acknowledged",
        "universally by everybody",
        ">",
    ]
