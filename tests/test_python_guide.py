"""Every example of docs/python.md runs as it is printed, one after the other."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_files import random_adapter
from helpers import BUNDLED, REPOSITORY, Converter

GUIDE = REPOSITORY / "docs" / "python.md"
BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    logger = logging.getLogger("infer_os")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_logger")
def test_the_examples_run(
    converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "austen.gguf").symlink_to(converted(BUNDLED_MODEL, "q8_0"))
    for seed, name in enumerate(("poet", "letters")):
        random_adapter(BUNDLED_MODEL, tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    # one thread: with more, a busy machine makes them wait for each other at every layer
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    text = GUIDE.read_text()
    names: dict[str, object] = {}
    printed = []
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        line = text[: block.start()].count("\n") + 1
        # a traceback then names the line of the guide
        code = compile("\n" * line + block[1], str(GUIDE), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, names)
        printed.append(output.getvalue())
    assert len(printed) == 10
    assert printed[0].endswith("length 128 tokens\n")
    assert re.search(r"(interrupt|length) \d+\n$", printed[2])
    assert printed[3].startswith("('poet', 'clerk')\n")
    assert re.findall(r"^(1|2|long) ", printed[5], re.M) == ["1", "2", "long"]
    assert printed[6].strip()
    assert "this thread has a stream" in printed[7]
    assert printed[8].startswith("no-such-model.gguf: no such file")
    assert "prefetching: " in printed[9]
    assert "WARNING" in printed[9]
