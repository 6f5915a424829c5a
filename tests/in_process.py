"""Run a command in the tests' own process, and what it leaves behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

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
    """What runs a command, given its words."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["infer-os", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfdbinary.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, out.decode(), err.decode())

    return call
