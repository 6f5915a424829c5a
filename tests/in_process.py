"""Run a command in the tests' own process, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

import pytest

from infer_os import cli


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one error line; anything more on either stream is a failure."""
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err

    @property
    def user_error(self) -> str:
        """The same of what was asked for wrongly: exit code 2."""
        assert self.code == 2
        return self.error


Cli = Callable[..., Outcome]


def runner(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """What runs a command, given its words, and what comes through its pipe of stdin, if any."""

    def call(*arguments: object, stdin: bytes | None = None) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["infer-os", *map(str, arguments)])
        capfdbinary.readouterr()  # what was said before is another command's
        with contextlib.ExitStack() as stack:
            if stdin is not None:
                monkeypatch.setattr(sys, "stdin", stack.enter_context(filled_pipe(stdin)))
            with pytest.raises(SystemExit) as ended:
                cli.main()
        out, err = capfdbinary.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, out.decode("utf-8", "replace"), err.decode())

    return call


def filled_pipe(content: bytes) -> TextIO:
    """The reading end of a pipe that holds so much and is closed at the other end."""
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    return os.fdopen(read, "r", encoding="utf-8")
