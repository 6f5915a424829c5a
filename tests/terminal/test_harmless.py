"""What strangers wrote on a terminal: spelled out wherever it is drawn, and as it is on a pipe."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from helpers import PARALLEL, Converter, copy_checkpoint, set_config

from infer_os.terminal.harmless import escaped, harmless, printable

STEERING = ["\x1b", "\x07", "\x9b", "\x00", "\u202e", "\u2066", "\x7f", "\r", "\x85", "\u2028",
            "\ufeff", "\ud800", "\U000e0041"]  # fmt: skip
TITLE = "\x1b]0;PWN\x07\x1b[31mX\u202e"

#: Draws a text in every way that the console has, on whatever stdout and stderr are.
DRAWN = """
import sys
from infer_os.terminal import console
text = {text!r}
console.answer(text)
console.note(text)
console.notes([text])
console.fail(text)
console.answer_json({{text: [text]}})
console.note_json({{text: text}})
console.table((text, "n"), [(text, text)])
console.table((text, "n"), [(text, text)], stderr=True)
console.table((text, "n" * 30, "m" * 30), [(text, text, text)])
console.paragraph(text, name=text, indent=4)
console.definitions([(text, text)])
console.answer_lines()(b'{{"id": "' + text.encode() + b'"}}\\n')
with console.progress_bar(text) as progress:
    progress and progress(1, 2)
wrap = console.word_wrap()
for piece in text:
    console.answer(piece, end="", wrap=wrap)
"""


def on_terminal(*command: str | Path, cache: Path) -> bytes:
    """What a command writes on a terminal of its own, both streams together."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "INFER_OS_CACHE": str(cache), "COLUMNS": "60"}
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=subprocess.DEVNULL, stdout=theirs,
        stderr=theirs, env=environment,
    ):  # fmt: skip
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            seen += data
    os.close(ours)
    return seen


@pytest.mark.parametrize("steering", STEERING)
def test_every_form_spells_it_out(steering: str) -> None:
    for made in (printable, harmless, escaped):
        assert steering not in made(f"a{steering}b")
    assert json.loads(escaped(json.dumps(f"a{steering}b", ensure_ascii=False))) == f"a{steering}b"


def test_no_control_character_is_left_of_all_of_unicode() -> None:
    every = "".join(map(chr, range(0x110000)))
    # joiners, and the marks of right-to-left scripts, are letters' own
    kept = {"\u00ad", "\u061c", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f"}
    steering = {c for c in printable(every) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert steering == set()
    bidirectional = {c for c in printable(every) if unicodedata.bidirectional(c) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )}  # fmt: skip
    assert bidirectional == set()
    assert kept <= set(printable("".join(kept)))


def test_lines_stay_where_there_may_be_several() -> None:
    assert harmless("a\tb\nc\r") == "a\tb\nc\\r"
    assert printable("a\tb\nc") == "a\\tb\\nc"


def test_everything_that_is_drawn_is_harmless(tmp_path: Path) -> None:
    seen = on_terminal("-c", DRAWN.format(text=TITLE), cache=tmp_path)
    assert b"Traceback" not in seen
    assert seen.count(b"PWN") > 15
    for stranger in (b"\x1b]0;PWN", b"\x07", b"\x1b[31mX", "\u202e".encode()):
        assert stranger not in seen, seen


def test_a_pipe_gets_answers_as_they_are() -> None:
    script = f"from infer_os.terminal import console; console.answer({TITLE!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == TITLE + "\n"


def test_names_of_checkpoints_and_files(converted: Converter, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(PARALLEL, tmp_path / "checkpoint")
    set_config(checkpoint, architectures=[TITLE], _name_or_path=TITLE)
    odd = tmp_path / f"a{TITLE.replace('/', '')}.gguf"
    odd.write_bytes(converted().read_bytes())
    main = ("-m", "infer_os.entry")
    lines: list[tuple[str | Path, ...]] = [
        ("convert", checkpoint, "-o", tmp_path / "m.gguf", "--type", "q8_0"),
        ("convert", checkpoint, "-o", odd),
        ("inspect", odd),
        ("inspect", odd, "--json"),
        ("plan", odd),
        ("generate", odd, "-p", "x", "-n", "2", "--threads", "1"),
        ("generate", tmp_path / f"no{TITLE}.gguf", "-p", "x"),
    ]
    for line in lines:
        seen = on_terminal(*main, *line, cache=tmp_path)
        assert b"Traceback" not in seen
        for stranger in (b"\x1b]0;PWN", b"\x07", "\u202e".encode()):
            assert stranger not in seen, (line, seen)
