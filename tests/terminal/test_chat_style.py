"""Which frame a chat takes: the file's template, the model's style, or what --style says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infer_os import cli
from infer_os.commands import loading
from infer_os.runtime.fake import END, FakeEngine, saying

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<bot>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Chat:
    """Say "hi" to an engine: exit code, what it was fed, and the notes before the chat."""
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", (tmp_path / "typed").open("w+"))
    (tmp_path / "typed").write_text("hi\n")

    def call(*options: str, template: str | None = None, style: str = "dialogue"):  # type: ignore[no-untyped-def]
        engine = FakeEngine(saying("ok"), 900, chat_template=template)
        engine.info = replace(engine.info, style=style)
        monkeypatch.setattr(loading, "load_engine", lambda path, settings: (engine, 0.0))
        monkeypatch.setattr(sys, "argv", ["infer-os", "chat", "m.gguf", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        _out, err = capfdbinary.readouterr()
        fed = "".join("[END]" if t == END else chr(t) for t in engine.tokens)
        return ended.value.code or 0, fed, err.decode()

    return call


def test_the_models_style_is_the_default(chat: Chat) -> None:
    code, fed, err = chat(style="dialogpt")
    assert (code, fed) == (0, "hi[END]ok")
    assert "style dialogpt, " in err
    assert "note" not in err


def test_a_template_goes_before_the_models_style(chat: Chat) -> None:
    code, fed, err = chat(template=TEMPLATE, style="dialogpt")
    assert (code, fed) == (0, "<user>hi[END]<bot>ok")
    assert "style template, " in err


@pytest.mark.parametrize("name", ["dialogpt", "human-bot", "template"])
def test_an_option_goes_before_all(chat: Chat, name: str) -> None:
    wanted = {"dialogpt": "hi[END]ok", "human-bot": "<human>: hi\n<bot>:ok",
              "template": "<user>hi[END]<bot>ok"}  # fmt: skip
    code, fed, err = chat("--style", name, template=TEMPLATE, style="dialogue")
    assert (code, fed) == (0, wanted[name])
    assert f"style {name}, " in err


def test_a_bad_template_names_what_is_used_instead(chat: Chat) -> None:
    code, fed, err = chat(template="{% if %}", style="dialogpt")
    assert (code, fed) == (0, "hi[END]ok")
    line = err.splitlines()[0]
    assert line.startswith("note: the chat template is malformed: TemplateSyntaxError")
    assert line.endswith("; style dialogpt is used instead")


def test_a_bad_template_that_was_asked_for(chat: Chat) -> None:
    code, fed, err = chat("--style", "template", template="{% if %}", style="dialogpt")
    assert (code, fed) == (2, "")
    assert err.startswith("error: the chat template is malformed")
    assert err.endswith("; --style dialogpt does without it\n")
    assert err.count("\n") == 1


def test_no_template_where_one_was_asked_for(chat: Chat) -> None:
    code, _fed, err = chat("--style", "template")
    assert code == 2
    assert err == (
        "error: --style template: fake.gguf has no chat template; --style dialogue does without "
        "one\n"
    )


def test_a_style_from_a_newer_file(chat: Chat) -> None:
    code, fed, err = chat(style="of-tomorrow")
    assert (code, fed) == (0, "User: hi\nAssistant:ok")
    assert err.startswith("note: the file's style of-tomorrow is unknown here; dialogue is used")


def test_a_style_of_another_vocabulary(chat: Chat) -> None:
    code, fed, err = chat("--style", "open-assistant")
    assert code == 0
    assert fed == "<|prompter|>hi[END]<|assistant|>ok"
    assert err.startswith(
        "note: style open-assistant: this model has no token <|prompter|>, <|assistant|>; "
    )


def test_a_template_without_a_place_for_a_system_prompt(chat: Chat) -> None:
    code, fed, err = chat("--system", "Be kind.", template=NO_SYSTEM)
    assert (code, fed) == (0, "<user>Be kind.\n\nhi[END]<bot>ok")
    assert err.startswith("note: the chat template takes no system prompt")
    code, fed, err = chat("--system", "Be kind.", template=TEMPLATE)
    assert "note" not in err


def test_typed_markers_are_letters(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "typed").write_text("a<|endoftext|>b\n")
    code, fed, _err = chat(template=TEMPLATE)
    assert (code, fed) == (0, "<user>a<|endoftext|>b[END]<bot>ok")
