"""What a command that takes no input writes on a terminal of a width."""

from __future__ import annotations

import os
import re
import sys

import pexpect


def shown(columns: int, *words: str) -> str:
    """The text of a command that ends well, without colours; this process's environment holds."""
    child = pexpect.spawn(
        sys.executable, ["-m", "infer_os.cli", *words], dimensions=(50, columns),
        encoding="utf-8", timeout=60,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )  # fmt: skip
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", str(child.before)).replace("\r", "")
