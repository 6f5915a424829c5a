"""Prompts that are far too long, and files that have no end."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from infer_os.models.styles import DIALOGUE
from infer_os.runtime import prompt
from infer_os.runtime.chat.session import Session
from infer_os.runtime.errors import PromptError
from infer_os.runtime.fake import END_TEXT, ByteVocabulary, FakeEngine
from infer_os.runtime.settings import SamplingSettings, StopSettings


class Watched(ByteVocabulary):
    """Keeps the length of the longest text that was tokenized."""

    longest = 0

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        self.longest = max(self.longest, len(text))
        return super().tokenize(text, parse_special=parse_special)


def test_a_long_prompt_is_refused_without_its_tokens() -> None:
    vocab = Watched()
    text = "x" * 10_000
    with pytest.raises(PromptError, match=r"the prompt has at least 769 tokens, .* holds 64; shor"):
        prompt.tokenize(vocab, text, 64)
    assert vocab.longest == 0
    assert len(prompt.tokenize(vocab, text, 10_000)) == 10_000
    assert prompt.tokenize(vocab, END_TEXT * 64, 64) == [256] * 64


def test_a_conversation_refuses_long_texts_without_their_tokens() -> None:
    engine = FakeEngine(lambda tokens: 256)
    vocab = engine.vocab = Watched()
    session = Session(engine, DIALOGUE)
    with pytest.raises(PromptError, match="the system prompt has at least"):
        session.system = "x" * 10_000
    with pytest.raises(PromptError, match="the message has at least"):
        next(session.reply("x" * 10_000, SamplingSettings(), StopSettings()))
    assert vocab.longest < 100
    assert session.n_turns == 0


def test_a_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfIt is \xff")
    assert prompt.read_file(path) == prompt.read_stream(path.open("rb")) == b"It is \xff"
    for encoding in ("utf-16", "utf-32"):
        path.write_text("It is", encoding)
        with pytest.raises(PromptError, match=r"p\.txt: is UTF-16 or UTF-32 text; save it as"):
            prompt.read_file(path)


def test_a_file_without_an_end(tmp_path: Path) -> None:
    for device in (Path("/dev/zero"), Path("/dev/urandom")):
        with pytest.raises(PromptError, match=f"{device}: longer than 16 MB"):
            prompt.read_file(device)
    whole = b"x" * prompt.LARGEST
    assert prompt.read_stream(io.BytesIO(whole)) == whole
    with pytest.raises(PromptError, match="standard input: longer"):
        prompt.read_stream(io.BytesIO(whole + b"x"))
    with pytest.raises(PromptError, match="Is a directory"):
        prompt.read_file(tmp_path)
    with pytest.raises(PromptError, match="No such file"):
        prompt.read_file(tmp_path / "none")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as end:
        end.write(b"piped")
    assert prompt.read_file(Path(f"/dev/fd/{reader}")) == b"piped"
    os.close(reader)
