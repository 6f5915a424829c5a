"""Chat templates: rendered as jinja2 does, safe from strangers, and typed text stays text."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import pytest

from infer_os.models.styles import STYLES
from infer_os.runtime.chat.frame import Message, StyleFrame, Turn
from infer_os.runtime.chat.framing import make_frame
from infer_os.runtime.chat.session import Session
from infer_os.runtime.chat.template import TemplateFrame
from infer_os.runtime.errors import PromptError, SettingsError, TemplateFailure
from infer_os.runtime.fake import END, END_TEXT, ByteVocabulary, FakeEngine, saying
from infer_os.runtime.settings import SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
STOP = StopSettings(20)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m.role + '|>' }}\n{{ m.content + eos_token }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }}"
    " [/INST]{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}"
    "{% elif loop.first %}<<{{ m.content }}>>{% else %}{% continue %}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "zephyr": ZEPHYR, "trimmed": TRIMMED, "no system": NO_SYSTEM}

TURNS = (Turn("Hi", tuple(b" Hello!")), Turn("{{ 1 + 1 }} {% raw %}", tuple(b" Fine.")))


def text_of(tokens: list[int]) -> str:
    return b"".join(END_TEXT.encode() if t == END else bytes([t]) for t in tokens).decode()


def rendered(template: str, system: str, turns: tuple[Turn, ...], message: str | None) -> str:
    """What jinja2 makes of the messages themselves."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.message})
        messages.append({"role": "assistant", "content": bytes(turn.reply).decode()})
    if message is not None:
        messages.append({"role": "user", "content": message})
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=message is not None, bos_token="",
        eos_token=END_TEXT,
    )  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("n_turns", [0, 1, 2])
def test_a_conversation_is_rendered(name: str, system: str, n_turns: int) -> None:
    template, turns = TEMPLATES[name], TURNS[:n_turns]
    frame = TemplateFrame(template, ByteVocabulary())
    assert frame.merges_system is (name == "no system")
    got = text_of(frame.tokens(system, turns, "Bye"))
    if frame.merges_system and system:
        asked = [turn.message for turn in turns] + ["Bye"]
        assert got.index(f"{system}\n\n{asked[0]}") < 10
        got = got.replace(f"{system}\n\n", "", 1)
        system = ""
    assert got == rendered(template, system, turns, "Bye")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_turn_goes_on_where_the_last_ended(name: str) -> None:
    frame = TemplateFrame(TEMPLATES[name], ByteVocabulary())
    asked = [*frame.tokens("S", TURNS[:1], TURNS[1].message), *TURNS[1].reply]
    assert frame.tokens("S", TURNS, "Bye")[: len(asked)] == asked


def written(system: str, turns: tuple[Turn, ...], message: str) -> list[Message]:
    messages = [Message("system", system)] if system else []
    for turn in turns:
        messages.append(Message("user", turn.message))
        messages.append(Message("assistant", bytes(turn.reply).decode().strip()))
    return [*messages, Message("user", message)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("n_turns", [0, 1, 2])
def test_a_written_conversation_is_rendered(name: str, system: str, n_turns: int) -> None:
    template = TEMPLATES[name]
    turns = tuple(Turn(t.message, tuple(bytes(t.reply).strip())) for t in TURNS[:n_turns])
    frame = TemplateFrame(template, ByteVocabulary())
    got = text_of(frame.written_tokens(written(system, turns, "Bye")))
    if frame.merges_system and system:
        assert got.index(f"{system}\n\n") < 10
        got = got.replace(f"{system}\n\n", "", 1)
        system = ""
    assert got == rendered(template, system, turns, "Bye")


def test_no_written_message_becomes_special_tokens() -> None:
    frame = TemplateFrame(ZEPHYR, ByteVocabulary())
    roles = ("system", "user", "assistant", "user")
    tokens = frame.written_tokens([Message(role, f"{END_TEXT}{{{{ 1 }}}}") for role in roles])
    assert tokens.count(END) == 4
    assert text_of(tokens).count(END_TEXT + "{{ 1 }}" + END_TEXT) == 4


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [(("user", "user"), "roles must alternate"), (("user", "system", "user"), "of the system")],
)
def test_a_template_may_refuse_messages(roles: tuple[str, ...], complaint: str) -> None:
    strict = (
        "{% for m in messages if m.role != 'system' %}"
        "{% if loop.previtem and loop.previtem.role == m.role and messages | length == 2 %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}|{% endfor %}"
    )
    frame = TemplateFrame(strict, ByteVocabulary())
    with pytest.raises(TemplateFailure, match=complaint):
        frame.written_tokens([Message(role, "x") for role in roles])


def test_markers_are_special_and_typed_text_is_not() -> None:
    frame = TemplateFrame(ZEPHYR, ByteVocabulary())
    tokens = frame.tokens(END_TEXT, (Turn(END_TEXT, (65,)),), f"a{END_TEXT}b")
    assert tokens.count(END) == 4
    assert text_of(tokens).count(END_TEXT) == 7


@pytest.mark.parametrize(
    ("name", "stops", "ends"),
    [("chatml", ("<|im_end|>\n<|im_start|>user",), []), ("zephyr", (), [END]),
     ("trimmed", (), [END]), ("no system", ("\nuser:",), [])],
)  # fmt: skip
def test_what_ends_a_reply(name: str, stops: tuple[str, ...], ends: list[int]) -> None:
    frame = TemplateFrame(TEMPLATES[name], ByteVocabulary())
    assert (frame.stops, frame.ends) == (stops, frozenset(ends))


IM_END = 257


class ChatmlVocabulary(ByteVocabulary):
    """One with <|im_end|> as a special token that ends no generation."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return [IM_END] if text == "<|im_end|>" and parse_special else super().tokenize(text)

    def piece(self, token: int) -> bytes:
        return b"" if token == IM_END else super().piece(token)

    def special_texts(self) -> list[str]:
        return [END_TEXT, "<|im_end|>"]


@pytest.mark.parametrize(
    ("drawn", "reply", "reason"),
    [
        ([*b"ok", IM_END, *b"user: no"], "ok", "end"),
        ([*"東京".encode(), IM_END, *b"x"], "東京", "end"),
        ([*"東".encode()[:2], IM_END, *b"xx"], "\ufffd", "end"),
        ([*b"a ST", IM_END, *b"xx"], "a ST", "end"),
        ([*b"0123456789abcdefghi", IM_END], "0123456789abcdefghi", "length"),
        ([IM_END, *b"user"], "", "end"),
    ],
)
def test_the_token_that_ends_a_turn_ends_the_reply(
    drawn: list[int], reply: str, reason: str
) -> None:
    start: list[int] = []

    def script(tokens: Sequence[int]) -> int:
        start[:] = start or [len(tokens)]
        said = len(tokens) - start[0]
        return drawn[said] if said < len(drawn) else 88

    engine = FakeEngine(script, 500, chat_template=CHATML)
    engine.vocab = ChatmlVocabulary()
    session = Session(engine, make_frame("template", engine))
    assert session.style.ends == {IM_END}
    assert "".join(session.reply("q", GREEDY, StopSettings(20, ("STOP",)))) == reply
    assert session.last.finish_reason is not None
    assert session.last.finish_reason.value == reason
    assert session.record().turns[0].reply == tuple(drawn[: drawn.index(IM_END)])


def test_dialogpts_own_template_is_its_style() -> None:
    vocab = ByteVocabulary()
    template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    mine = StyleFrame(STYLES["dialogpt"], vocab).tokens("S", TURNS, "Bye")
    assert TemplateFrame(template, vocab).tokens("S", TURNS, "Bye") == mine


# ---- what a template computes of messages

THINKING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% elif m.role == "
    "'assistant' %}<|a|>{{ m.content.split('</think>')[-1] | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|a|><think>{% endif %}"
)


def test_a_reply_that_the_template_rewrites_is_fed_as_it_writes_it() -> None:
    frame = TemplateFrame(THINKING, ByteVocabulary())
    turns = (Turn("1", tuple(b"hm </think> Two.")), Turn("3", tuple(b" Four. ")))
    assert text_of(frame.tokens("", turns, "5")) == (
        # the second stands in the cache as it was drawn, behind what was written before it
        f"<|u|>1<|a|>Two.{END_TEXT}<|u|>3<|a|><think> Four. {END_TEXT}<|u|>5<|a|><think>"
    )


def test_a_session_goes_on_behind_a_rewritten_reply() -> None:
    replies = [b"hm</think> Two.", b" Four."]
    starts: list[int] = []

    def script(tokens: Sequence[int]) -> int:
        if not starts or tokens[-7:] == list(b"<think>"):
            starts.append(len(tokens))
        said = len(tokens) - starts[-1]
        reply = replies[min(len(starts), len(replies)) - 1]
        return reply[said] if said < len(reply) else END

    engine = FakeEngine(script, 500, chat_template=THINKING)
    session = Session(engine, make_frame("template", engine))
    assert "".join(session.reply("1", GREEDY, STOP)) == "hm</think> Two."
    assert "".join(session.reply("3", GREEDY, STOP)) == " Four."
    asked = len("<|u|>1<|a|>Two.E<|u|>3<|a|><think>") - len("<|u|>1<|a|>")
    assert session.last.timings.computed_tokens == asked
    record = session.record()
    assert record.turns[0].reply == tuple(replies[0])
    before = session.tokens()
    session.reset()
    session.resume(record)
    assert session.tokens() == before
    session.undo()
    assert text_of(session.tokens()) == f"<|u|>1<|a|>Two.{END_TEXT}"


@pytest.mark.parametrize("reply", [b" ok", b" ok \n", b"\xe6\x9d", b"a <|endoftext|> b"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reply_that_is_written_whole_or_trimmed_keeps_its_tokens(name: str, reply: bytes) -> None:
    frame = TemplateFrame(TEMPLATES[name], ByteVocabulary())
    asked = [*frame.tokens("S", (), "q"), *reply]
    assert frame.tokens("S", (Turn("q", tuple(reply)),), "Bye")[: len(asked)] == asked


def test_what_a_template_leaves_out_is_seen_by_what_it_does() -> None:
    lossy = "{% for m in messages %}{{ m.content | urlize }}{{ m.content | indent }}|{% endfor %}"
    frame = TemplateFrame(lossy, ByteVocabulary())
    assert frame.stops == ("|",)
    assert text_of(frame.tokens("", (Turn("a", (66,)),), "")) == "aa|BB||"


@pytest.mark.parametrize("content", ["text", END_TEXT, "endoftext|>", "x"])
def test_no_mixture_with_a_message_is_special(content: str) -> None:
    mixed = (
        "{% for m in messages %}<|endof{{ m.content }}|>{{ '<|' ~ m.content }}|>"
        "{{ eos_token.replace('text', m.content) }}{{ eos_token }}{% endfor %}"
    )
    frame = TemplateFrame(mixed, ByteVocabulary())
    tokens = frame.written_tokens([Message("user", content)])
    assert tokens.count(END) == 1
    assert tokens[-1] == END
    spelled = f"<|endof{content}|><|{content}|>{END_TEXT.replace('text', content)}{END_TEXT}"
    assert text_of(tokens) == spelled


class SpecialVocabulary(ByteVocabulary):
    """One that has every special token but one."""

    def special_text(self, name: str) -> str:
        return "" if name == "sep" else f"<{name}>"


def test_every_special_token_is_there_and_no_other() -> None:
    names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    template = "".join(f"{{{{ {n}_token if {n}_token is defined }}}}" for n in names)
    template += "{{ tools is none }}{{ documents is none }}{% for m in messages %}{{ m.content }}."
    frame = TemplateFrame(template + "{% endfor %}", SpecialVocabulary())
    wanted = "<bos><eos><unk><pad><cls><mask>TrueTruea."
    assert text_of(frame.written_tokens([Message("user", "a")])) == wanted


# ---- what cannot be used

REFUSED = {
    "syntax": ("{% for %}", "malformed: TemplateSyntaxError"),
    "unknown filter": ("{{ messages | nosuch }}", "malformed: TemplateAssertionError"),
    "raises": ("{{ raise_exception('not\nme') }}", "fails: TemplateError: not me$"),
    "undefined": ("{{ messages.nosuch.thing }}", "fails: UndefinedError"),
    "divides": ("{{ 1 // 0 }}", "fails: ZeroDivisionError"),
    "python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails: SecurityError"),
    "changes": ("{{ messages.clear() }}", "fails: SecurityError"),
    "range": ("{% for i in range(999999999) %}{% endfor %}", "fails: OverflowError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
    "deep": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "malformed: "),
    "silent": ("{{ messages[0].content }}", "leaves out the last message"),
    "forgets": ("{{ messages[-1].content }}", "leaves out the replies"),
    "reads files": ("{% include '/etc/passwd' %}", "fails: TypeError: no loader"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_template_is_one_line(name: str) -> None:
    template, complaint = REFUSED[name]
    with pytest.raises(TemplateFailure, match=complaint) as caught:
        TemplateFrame(template, ByteVocabulary())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_template_may_fail_later() -> None:
    template = "{% if messages | length > 4 %}{{ raise_exception('enough') }}{% endif %}" + CHATML
    engine = FakeEngine(saying("ok"), 900, chat_template=template)
    session = Session(engine, make_frame("template", engine))
    for _ in range(2):
        assert "".join(session.reply("a", GREEDY, STOP)) == "ok"
    with pytest.raises(TemplateFailure, match="enough"):
        list(session.reply("a", GREEDY, STOP))
    assert session.n_turns == 2


def test_no_template() -> None:
    with pytest.raises(SettingsError, match=r"fake\.gguf has no chat template; --style dialogue"):
        make_frame("template", FakeEngine(saying("x")))


# ---- in a session


def test_only_the_new_turn_is_computed() -> None:
    engine = FakeEngine(saying("ok"), 2000, chat_template=CHATML)
    session = Session(engine, make_frame("template", engine), "A system prompt.")
    for i in range(20):
        assert "".join(session.reply(f"m{i:02}", GREEDY, STOP)) == "ok"
        closing, asked = "<|im_end|>\n", "<|im_start|>user\nm00<|im_end|>\n<|im_start|>assistant\n"
        if i:
            assert session.last.timings.computed_tokens == len(closing + asked)


def test_a_full_context_slides_and_keeps_the_system_prompt() -> None:
    engine = FakeEngine(saying("ok"), 400, chat_template=CHATML)
    session = Session(engine, make_frame("template", engine), "Stay.")
    dropped = 0
    for i in range(12):
        "".join(session.reply(f"message {i}", GREEDY, STOP))
        dropped += session.dropped_turns
        assert bytes(engine.tokens[:34]).decode() == "<|im_start|>system\nStay.<|im_end|>"
    assert dropped == 12 - session.n_turns > 0


def test_a_system_prompt_that_fills_the_context() -> None:
    engine = FakeEngine(saying("ok"), 100, chat_template=CHATML)
    with pytest.raises(PromptError, match="--context"):
        Session(engine, make_frame("template", engine), "s" * 90)
