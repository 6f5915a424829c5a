"""Twenty turns on real models: each computes its own tokens and no others, counted in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers import BUNDLED, Converter

from infer_os.models.styles import STYLES
from infer_os.native.context import Context
from infer_os.runtime.chat.session import Session
from infer_os.runtime.chat.session_file import load_session, save_session
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
SHORT = StopSettings(6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that llama.cpp is handed, one number per call."""
    counts: list[int] = []
    decode, decode_one = Context.decode, Context.decode_one

    def watch(self: Context, tokens: Sequence[int], first: int, *, outputs: int = 0) -> None:
        counts.append(len(tokens))
        decode(self, tokens, first, outputs=outputs)

    def watch_one(self: Context, token: int, position: int) -> None:
        counts.append(1)
        decode_one(self, token, position)

    monkeypatch.setattr(Context, "decode", watch)
    monkeypatch.setattr(Context, "decode_one", watch_one)
    return counts


@pytest.fixture(scope="module")
def austen(converted: Converter) -> Path:
    (folder,) = [folder for folder in BUNDLED if folder.name == "austen-6m"]
    return converted(folder, "q8_0")


@pytest.fixture
def engine(austen: Path) -> Iterator[LlamaEngine]:
    with LlamaEngine(austen, EngineSettings(context=2048, threads=1)) as loaded:
        yield loaded


def said(session: Session, text: str, stop: StopSettings = SHORT) -> str:
    return "".join(session.reply(text, GREEDY, stop))


@pytest.mark.parametrize("style", ["dialogue", "dialogpt"])
def test_after_twenty_turns_a_turn_computes_its_own_tokens(
    engine: LlamaEngine, counted: list[int], style: str
) -> None:
    session = Session(engine, STYLES[style], "It is a truth universally acknowledged. " * 8)
    for turn in range(25):
        held = list(engine.tokens)
        counted.clear()
        said(session, f"And what did Mr. Darcy answer, the {turn}th time?")
        new = len(engine.tokens) - len(held)
        # every token in the cache beyond those held before was computed once, and no other; where
        # the limit ends a reply, its last token is drawn but not computed
        assert list(engine.tokens[: len(held)]) == held
        assert sum(counted) == new
        assert session.last.timings.computed_tokens == new - (len(session.last.tokens) - 1)
        if turn >= 20:
            assert len(held) > 20 * new / 2
            assert sum(counted) < 50
    assert session.n_turns == 25
    assert session.dropped_turns == 0


def test_undo_and_another_answer_reuse_the_cache(engine: LlamaEngine, counted: list[int]) -> None:
    session = Session(engine, STYLES["dialogue"])
    for text in ("one", "two", "three"):
        said(session, text)
    expected = said(session, "four")
    turn = session.undo()
    assert turn is not None
    counted.clear()
    assert said(session, turn.message) == expected
    # the prompt's last token and the drawn ones, less the last
    assert sum(counted) == 1 + len(session.last.tokens) - 1
    session.undo()
    counted.clear()
    said(session, "five")
    assert sum(counted) < 20


def test_a_session_of_a_template_goes_on(
    engine: LlamaEngine, austen: Path, tmp_path: Path, counted: list[int]
) -> None:
    from dataclasses import replace

    from infer_os.runtime.chat.framing import make_frame

    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path = tmp_path / "talk.session"
    engine.info = replace(engine.info, chat_template=template)
    session = Session(engine, make_frame("template", engine), "Be kind.")
    for text in ("one <|endoftext|>", "two", "three"):
        said(session, text)
    assert list(engine.tokens).count(engine.vocab.eos) == 6
    save_session(path, session, austen, tmp_path)
    expected = said(session, "four")
    with LlamaEngine(austen, EngineSettings(context=2048, threads=1)) as other:
        other.info = replace(other.info, chat_template=template)
        again = Session(other, STYLES["plain"])
        load_session(path, again, austen, tmp_path)
        assert (again.style.name, again.system, again.n_turns) == ("template", "Be kind.", 3)
        counted.clear()
        assert said(again, "four") == expected
        assert sum(counted) < 30
