"""The chat's commands: what each does, and that a wrong one changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import REPOSITORY

from infer_os.models.styles import STYLE_NAMES, STYLES
from infer_os.runtime.chat.session import Session
from infer_os.runtime.errors import PromptError, SettingsError
from infer_os.runtime.fake import FakeEngine, saying
from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.terminal.chat_commands import COMMANDS, ChatEnd, ChatState, completions, obey

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ChatState:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path))
    session = Session(FakeEngine(saying(" fine"), 500), STYLES["dialogue"], "Be kind.")
    return ChatState(session, SamplingSettings(), StopSettings(20))


def talk(chat: ChatState, *messages: str) -> None:
    for message in messages:
        "".join(chat.session.reply(message, chat.sampling, chat.stops))


def told(capsys: Capture, chat: ChatState, line: str) -> str:
    assert obey(chat, line) is None
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_help_names_every_command(chat: ChatState, capsys: Capture) -> None:
    lines = told(capsys, chat, "/help").splitlines()
    for command in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"{command.name} ")]
        assert command.help in line
        assert command.argument in line
    assert set(completions()) == {
        "/help", "/reset", "/undo", "/retry", "/system", "/set", "/stats", "/kv", "/adapter",
        "/save", "/load", "/quit",
    }  # fmt: skip


def test_the_guide_has_every_command_setting_and_style() -> None:
    pages = [(REPOSITORY / "docs" / name).read_text() for name in ("chat.md", "sampling.md")]
    assert "(sampling.md)" in pages[0]
    guide = "".join(pages)
    for name in (*completions(), *completions()["/set"], *STYLE_NAMES):
        assert f"`{name}" in guide, name


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/nonsense x", "/nonsense: no such command; /help lists them\n"),
        ("/nope", "/nope: no such command; /help lists them\n"),
        ("/rest", "/rest: no such command; did you mean /reset?\n"),
        ("/", "/: no such command; /help lists them\n"),
        ("/reset now", "/reset: expected /reset alone\n"),
        ("/undo 2", "/undo: expected /undo alone\n"),
        ("/save", "/save: expected /save FILE\n"),
        ("/load  ", "/load: expected /load FILE\n"),
    ],
)
def test_a_wrong_command_changes_nothing(
    chat: ChatState, capsys: Capture, line: str, answer: str
) -> None:
    talk(chat, "a")
    before = chat.session.record()
    assert told(capsys, chat, line) == answer
    assert chat.session.record() == before


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/set temperature 0.7", "temperature", 0.7), ("/set top_k 7", "top_k", 7),
        ("/set no-repeat-ngram 3", "no_repeat_ngram", 3), ("/set mirostat 2", "mirostat", 2),
        ("/set top-p 0.5", "top_p", 0.5), ("/set min_p 0.1", "min_p", 0.1),
        ("/set  repeat_penalty  1.3", "repeat_penalty", 1.3), ("/set seed 5", "seed", 5),
    ],
)  # fmt: skip
def test_set(chat: ChatState, capsys: Capture, line: str, field: str, value: float) -> None:
    assert told(capsys, chat, line) == f"{field} {value}\n"
    assert getattr(chat.sampling, field) == value
    assert told(capsys, chat, f"/set {field}") == f"{field} {value}\n"


def test_set_biases(chat: ChatState, capsys: Capture) -> None:
    assert told(capsys, chat, "/set logit-bias 11=-100, 198=2.5") == (
        "logit_bias 11=-100.0,198=2.5\n"
    )
    assert chat.sampling.logit_bias == ((11, -100), (198, 2.5))
    assert told(capsys, chat, "/set logit_bias none") == "logit_bias none\n"
    assert chat.sampling.logit_bias == ()


def test_set_seed_random_and_max_tokens(chat: ChatState, capsys: Capture) -> None:
    told(capsys, chat, "/set seed 5")
    assert told(capsys, chat, "/set seed random") == "seed random\n"
    assert chat.sampling.seed is None
    told(capsys, chat, "/set max_tokens 3")
    assert chat.stops.max_tokens == 3
    talk(chat, "a")
    assert len(chat.session.last.tokens) == 3


def test_set_alone_shows_all(chat: ChatState, capsys: Capture) -> None:
    lines = told(capsys, chat, "/set").splitlines()
    assert [tuple(line.split()) for line in lines] == [
        ("temperature", "0.8"), ("top_k", "40"), ("top_p", "0.95"), ("min_p", "0.05"),
        ("repeat_penalty", "1.0"), ("repeat_last_n", "64"),
        ("presence_penalty", "0.0"), ("frequency_penalty", "0.0"),
        ("dry_multiplier", "0.0"), ("dry_base", "1.75"), ("dry_allowed_length", "2"),
        ("dry_penalty_last_n", "4096"), ("no_repeat_ngram", "0"), ("min_tokens", "0"),
        ("top_n_sigma", "0.0"), ("typical_p", "1.0"),
        ("xtc_probability", "0.0"), ("xtc_threshold", "0.1"),
        ("dynatemp_range", "0.0"), ("dynatemp_exponent", "1.0"),
        ("mirostat", "0"), ("mirostat_tau", "5.0"), ("mirostat_eta", "0.1"),
        ("adaptive_target", "-1.0"), ("adaptive_decay", "0.9"), ("seed", "random"),
        ("grammar", "none"), ("json_schema", "none"), ("regex", "none"),
        ("logit_bias", "none"), ("max_tokens", "20"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/set warmth 1", "/set warmth: expected one of temperature, top_k"),
        ("/set xtc 1", "/set xtc: no such setting; did you mean xtc_probability or xtc_threshold?"),
        ("/set temprature 1", "/set temprature: no such setting; did you mean temperature?"),
        ("/set temperature hot", "/set temperature hot: expected a number"),
        ("/set temperature -1", "/set temperature -1.0: expected 0"),
        ("/set temperature nan", "/set temperature nan: expected a number"),
        ("/set temperature 0.5 0.6", "/set temperature 0.5 0.6: expected a number"),
        ("/set top_k 1.5", "/set top_k 1.5: expected a whole number"),
        ("/set top_k -1", "/set top_k -1: expected 0"),
        ("/set top_p 0", "/set top_p 0.0: expected more"),
        ("/set min_p 1", "/set min_p 1.0: expected 0"),
        ("/set logit_bias x", "/set logit_bias 'x' is no token: expected tokens with numbers"),
        ("/set logit_bias 1=x", "/set logit_bias 1=x: expected tokens with numbers"),
        ("/set mirostat 1", "/set mirostat 1: expected 0 (off) or 2"),
        ("/set repeat_penalty 0", "/set repeat_penalty 0.0: expected"),
        ("/set seed x", "/set seed x: expected a whole number, or random"),
        ("/set seed -2", "/set seed -2: expected 0"),
        ("/set max_tokens 0", "/set max_tokens 0: expected 1"),
    ],
)
def test_a_wrong_value_is_one_line_and_changes_nothing(
    chat: ChatState, line: str, complaint: str
) -> None:
    sampling, stops = chat.sampling, chat.stops
    with pytest.raises(SettingsError) as caught:
        obey(chat, line)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)
    assert (chat.sampling, chat.stops) == (sampling, stops)


def test_undo(chat: ChatState, capsys: Capture) -> None:
    assert told(capsys, chat, "/undo") == "There is no turn to undo.\n"
    talk(chat, "one", "two\nlines " + "x" * 90)
    assert told(capsys, chat, "/undo") == f"Forgotten: two lines {'x' * 47}...\n"
    assert [turn.message for turn in chat.session.record().turns] == ["one"]


def test_retry_asks_for_the_same_message(chat: ChatState, capsys: Capture) -> None:
    assert told(capsys, chat, "/retry") == "There is no turn to answer again.\n"
    talk(chat, "one", "two")
    assert obey(chat, "/retry") == "two"
    assert (chat.session.n_turns, chat.attempts) == (1, 1)
    assert capsys.readouterr().err == ""
    obey(chat, "/set temperature 0")
    capsys.readouterr()
    assert obey(chat, "/retry") == "one"
    assert "temperature 0 gives the same reply again" in capsys.readouterr().err


def test_system(chat: ChatState, capsys: Capture) -> None:
    assert told(capsys, chat, "/system") == "The system prompt: Be kind.\n"
    assert told(capsys, chat, "/system Be brief,\nplease.") == "The system prompt is set.\n"
    assert chat.session.system == "Be brief,\nplease."
    with pytest.raises(PromptError, match="--context"):
        obey(chat, "/system " + "x" * 500)
    assert chat.session.system == "Be brief,\nplease."
    assert told(capsys, chat, "/system none") == "The system prompt is removed.\n"
    assert told(capsys, chat, "/system") == "There is no system prompt.\n"


def test_quit(chat: ChatState) -> None:
    with pytest.raises(ChatEnd):
        obey(chat, "/quit")


def test_stats_and_kv(chat: ChatState, capsys: Capture) -> None:
    assert "no reply yet" in told(capsys, chat, "/stats")
    talk(chat, "one")
    assert "| end]" in told(capsys, chat, "/stats")
    assert told(capsys, chat, "/kv").startswith("stage 1 of 1")


# ---- seeds


def test_another_answer_is_another_draw_and_repeatable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from infer_os.terminal import conversation
    from infer_os.terminal.line_editor import Entry

    seeds: list[int | None] = []

    class Watched(FakeEngine):
        def new_sampler(self, settings: SamplingSettings) -> object:  # type: ignore[override]
            seeds.append(settings.seed)
            return super().new_sampler(settings)

    def run(lines: Sequence[str], seed: int | None) -> list[int | None]:
        seeds.clear()
        entries = [Entry(line, line.startswith("/")) for line in lines]
        monkeypatch.setattr(conversation, "read_entries", lambda *_: iter(entries))
        session = Session(Watched(saying(" x"), 500), STYLES["dialogue"])
        conversation.converse(
            session, SamplingSettings(seed=seed), StopSettings(5), tmp_path / "history"
        )
        return list(seeds)

    assert run(["a", "/retry", "/retry", "b", "/retry"], 7) == [7, 8, 9, 7, 8]
    assert run(["a", "/retry"], 0xFFFFFFFE) == [0xFFFFFFFE, 0]
    assert run(["a", "/retry"], None) == [None, None]
