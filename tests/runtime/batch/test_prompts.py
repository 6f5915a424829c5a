"""What the model gets of a record: prompts as they are, conversations as a chat frames them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer_os.models.styles import STYLES
from infer_os.runtime.batch.prompts import ModelInfo, Prompts
from infer_os.runtime.batch.records import Record, RecordParser
from infer_os.runtime.batch.sequence import Sequence
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.chat.frame import StyleFrame
from infer_os.runtime.chat.framing import choose_frame
from infer_os.runtime.errors import SettingsError, TemplateFailure
from infer_os.runtime.fake import END, END_TEXT, ByteVocabulary, FakeEngine, saying
from infer_os.runtime.generate import FinishReason
from infer_os.runtime.settings import SamplingSettings, StopSettings
from infer_os.runtime.text import TextStream

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<bot>"
REFUSING = TEMPLATE + "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"


def prompts(template: str | None = None, own: str = "dialogue", **batch: Any) -> Prompts:
    info = ModelInfo(Path("m.gguf"), template, own)
    return Prompts(info, ByteVocabulary(), BatchSettings(**batch))


def asking(*contents: str, **more: Any) -> Record:
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    parser = RecordParser(SamplingSettings(), StopSettings(20))
    record = parser.parse(7, {"id": "a", "messages": messages, **more})
    assert isinstance(record, Record)
    return record


def text_of(tokens: tuple[int, ...]) -> str:
    return "".join("[END]" if token == END else chr(token) for token in tokens)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("style", ["dialogpt", "stablelm", "rinna"])
@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("option", ["", "human-bot"])
def test_a_conversation_begins_as_a_chat_does(
    template: str | None, style: str, system: str, option: str
) -> None:
    made = prompts(template, style, style=option, system=system)
    engine = FakeEngine(saying(""), 900, chat_template=template)
    frame, _notes = choose_frame(Prompts(made.info, engine.vocab, BatchSettings()), option, system)
    assert frame.name == (option or ("template" if template else style))
    assert list(made.tokens(asking(f"a {END_TEXT}"), 4096)) == frame.tokens(
        system, (), f"a {END_TEXT}"
    )
    assert made.stops(asking("a", stop="x")) == ("x", *frame.stops)


def test_a_system_message_goes_before_the_option() -> None:
    parser = RecordParser(SamplingSettings(), StopSettings(20))
    messages = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "a"}]
    record = parser.parse(1, {"id": 1, "messages": messages})
    assert isinstance(record, Record)
    assert text_of(prompts(system="Theirs.").tokens(record, 4096)) == "Mine.\n\nUser: a\nAssistant:"


def test_a_prompt_is_read_as_it_is() -> None:
    record = Record("a", 1, SamplingSettings(), StopSettings(5, ("x",)), f"a{END_TEXT}b")
    made = prompts(TEMPLATE, prefix="p ", system="Be kind.", style="rinna")
    assert text_of(made.tokens(record, 4096)) == "p a[END]b"
    assert made.stops(record) == ("x",)
    assert made.frame(record) is None


def test_what_a_template_refuses_is_its_own_fault_alone() -> None:
    made = prompts(REFUSING)
    with pytest.raises(TemplateFailure, match="too long"):
        made.tokens(asking("a", "b", "c", "d", "e"), 4096)
    assert text_of(made.tokens(asking("a", "b", "c"), 4096)).endswith("<user>c[END]<bot>")


def test_notes_come_with_the_first_conversation() -> None:
    made = prompts("{{ broken", "open-assistant")
    assert made.notes == ()
    assert text_of(made.tokens(asking("a"), 4096)).startswith("<|prompter|>a")
    malformed, letters = made.notes
    assert "style open-assistant is used instead" in malformed
    assert "written as letters" in letters


def test_a_style_that_was_asked_for_and_cannot_be() -> None:
    with pytest.raises(SettingsError, match=r"m\.gguf has no chat template; --style rinna does"):
        prompts(None, "rinna", style="template")
    with pytest.raises(TemplateFailure, match="--style rinna does without"):
        prompts("{{ broken", "rinna", style="template")
    with pytest.raises(SettingsError, match="style odd: expected one of dialogue, plain, "):
        BatchSettings(style="odd")


class Marked(ByteVocabulary):
    """One whose token 257 is a marker that ends no text by itself."""

    def special_texts(self) -> list[str]:
        return [END_TEXT, "<|prompter|>"]

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        if parse_special and text == "<|prompter|>":
            return [257]
        return super().tokenize(text, parse_special=parse_special)

    def piece(self, token: int) -> bytes:
        return b"" if token == 257 else super().piece(token)


def test_a_marker_of_the_frame_ends_an_answer() -> None:
    vocab = Marked()
    frame = StyleFrame(STYLES["open-assistant"], vocab)
    for used, reason in ((frame, FinishReason.END), (None, None)):
        sequence = Sequence(asking("a"), 0, (1,), None, TextStream(), used)
        assert sequence.push(ord("x"), vocab, 90) is None  # type: ignore[arg-type]
        assert sequence.push(257, vocab, 90) is reason  # type: ignore[arg-type]


def test_an_answer_is_shown_as_in_a_chat() -> None:
    vocab = ByteVocabulary()
    record = asking("a", stop="\n\n")
    made = prompts(own="rinna")
    sequence = Sequence(record, 0, (1,), None, TextStream(made.stops(record)), made.frame(record))
    reasons = [sequence.push(byte, vocab, 90) for byte in b" one<NL>two<NL><NL>"]  # type: ignore[arg-type]
    assert reasons[-1] is FinishReason.STOP
    result = sequence.result(FinishReason.STOP, with_logprobs=False)
    assert result.text == "one\ntwo"
    assert len(result.tokens) == 19
