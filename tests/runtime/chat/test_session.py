"""A conversation on a scripted engine: what is computed, kept, dropped and cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from infer_os.models.styles import DIALOGUE, PLAIN, STYLES
from infer_os.runtime.chat.session import Session
from infer_os.runtime.errors import PromptError
from infer_os.runtime.fake import END, FakeEngine, FakeSampler, Script, saying
from infer_os.runtime.generate import FinishReason
from infer_os.runtime.settings import SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
STOP = StopSettings(20)


def say(session: Session, message: str, stop: StopSettings = STOP) -> str:
    return "".join(session.reply(message, GREEDY, stop))


def held(engine: FakeEngine) -> str:
    """What the engine's cache holds, as text."""
    return bytes(t for t in engine.tokens if t != END).decode()


def in_turn(*replies: str) -> Script:
    """A script that gives one reply after the other; each ends with the end token."""
    state = {"turn": -1, "said": 0, "length": -1}

    def script(tokens: Sequence[int]) -> int:
        if len(tokens) != state["length"] + 1 or state["length"] < 0:
            state.update(turn=state["turn"] + 1, said=0)
        data = replies[min(state["turn"], len(replies) - 1)].encode()
        token = data[state["said"]] if state["said"] < len(data) else END
        state.update(said=state["said"] + 1, length=len(tokens))
        return token

    return script


def test_a_turn_is_framed() -> None:
    engine = FakeEngine(saying(" fine"), n_ctx=200)
    session = Session(engine, DIALOGUE, "Be kind.")
    assert say(session, "how are you?") == " fine"
    assert held(engine) == "Be kind.\n\nUser: how are you?\nAssistant: fine"
    assert session.last.finish_reason is FinishReason.END
    assert session.n_turns == 1


def test_the_next_turn_follows_the_last() -> None:
    engine = FakeEngine(in_turn(" one", " two"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    say(session, "a")
    assert say(session, "b") == " two"
    assert held(engine) == "User: a\nAssistant: one\nUser: b\nAssistant: two"


def test_only_the_new_turn_is_computed() -> None:
    engine = FakeEngine(in_turn(" one", " two", " three"), n_ctx=500)
    session = Session(engine, DIALOGUE, "System text that is never computed twice.")
    say(session, "first")
    for message, reply in (("second", " two"), ("third", " three")):
        before = engine.computed
        say(session, message)
        # the frame, the message, the end of the turn before, and the reply that is drawn
        new = len(f"\nUser: {message}\nAssistant:")
        assert session.last.timings.computed_tokens == new
        assert engine.computed - before == new + len(reply)


def test_a_style_stop_is_cut_and_the_turn_closed() -> None:
    engine = FakeEngine(in_turn(" yes\nUser: and I say", " no"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    assert say(session, "q") == " yes"
    assert session.last.finish_reason is FinishReason.STOP
    say(session, "r")
    assert held(engine) == "User: q\nAssistant: yes\nUser: r\nAssistant: no"


def test_a_stop_string_of_the_user_is_cut_as_well() -> None:
    engine = FakeEngine(in_turn(" yes END of it", " no"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    assert say(session, "q", StopSettings(20, ("END",))) == " yes "
    say(session, "r")
    assert held(engine) == "User: q\nAssistant: yes \nUser: r\nAssistant: no"


def test_the_stop_that_came_first_is_cut() -> None:
    engine = FakeEngine(in_turn(" a\nUser: END", " no"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    assert say(session, "q", StopSettings(20, ("END", "User"))) == " a\n"
    say(session, "r")
    assert held(engine).startswith("User: q\nAssistant: a\n\nUser: r")


def test_a_reply_that_the_limit_ends_is_kept() -> None:
    engine = FakeEngine(in_turn(" abcdefgh", " x"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    assert say(session, "q", StopSettings(4)) == " abc"
    say(session, "r")
    assert held(engine) == "User: q\nAssistant: abc\nUser: r\nAssistant: x"


def test_special_tokens_in_a_message_stay_letters() -> None:
    asked: list[bool] = []
    engine = FakeEngine(saying(" x"), n_ctx=200)
    original = engine.vocab.tokenize

    def watched(
        text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        if "message" in str(text):
            asked.append(add_special or parse_special)
        return original(text)

    engine.vocab.tokenize = watched  # type: ignore[method-assign]
    say(Session(engine, DIALOGUE), "a <|endoftext|> message")
    assert asked == [False]


def test_reset_forgets_all_but_the_system_prompt() -> None:
    engine = FakeEngine(in_turn(" one", " two"), n_ctx=200)
    session = Session(engine, DIALOGUE, "Be kind.")
    say(session, "a")
    session.reset()
    assert session.n_turns == 0
    say(session, "b")
    assert held(engine) == "Be kind.\n\nUser: b\nAssistant: two"
    assert session.last.timings.computed_tokens == len("b\nAssistant:")


def test_the_oldest_turns_are_dropped_when_the_context_is_full() -> None:
    engine = FakeEngine(lambda tokens: END if tokens[-1] == 88 else 88, n_ctx=100)
    session = Session(engine, DIALOGUE, "S.")
    dropped = []
    for i in range(12):
        assert say(session, f"message {i}") == "X"
        dropped.append(session.dropped_turns)
        text = held(engine)
        assert text.startswith("S.\n\nUser: message")
        assert i == 0 or f"User: message {i - 1}\n" in text
        assert text.endswith(f"User: message {i}\nAssistant:X")
        assert len(engine.tokens) + 1 <= engine.n_ctx
    assert dropped[:2] == [0, 0]
    assert sum(dropped) == 12 - session.n_turns
    assert set(dropped[4:]) == {1}


def test_a_message_that_fills_the_context_is_refused_and_nothing_lost() -> None:
    engine = FakeEngine(in_turn(" one", " two"), n_ctx=60)
    session = Session(engine, DIALOGUE)
    say(session, "a")
    with pytest.raises(PromptError, match="no room"):
        say(session, "x" * 60)
    assert session.n_turns == 1
    assert say(session, "b") == " two"
    assert "User: a" in held(engine)


def test_a_system_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(PromptError, match="--context"):
        Session(FakeEngine(saying("")), DIALOGUE, "s" * 64)


def test_a_reply_that_the_caller_drops_is_kept_as_interrupted() -> None:
    engine = FakeEngine(saying(" abcdef"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    reply = session.reply("q", GREEDY, STOP)
    assert [next(reply), next(reply)] == [" ", "a"]
    reply.close()
    assert session.last.finish_reason is FinishReason.INTERRUPT
    assert session.n_turns == 1


def test_an_interrupted_reply_stays_in_the_conversation() -> None:
    turns = iter([" abc", " fine"])
    state: dict[str, str] = {}

    def script(tokens: Sequence[int]) -> int:
        text = bytes(t for t in tokens if t != END).decode()
        if text.endswith("Assistant:"):
            state["reply"], state["base"] = next(turns), text
        said = text[len(state["base"]) :]
        if state["reply"] == " abc" and said == " abc":
            raise KeyboardInterrupt
        return ord(state["reply"][len(said)]) if len(said) < len(state["reply"]) else END

    engine = FakeEngine(script, n_ctx=200)
    session = Session(engine, DIALOGUE)
    assert say(session, "q") == " abc"
    assert session.last.finish_reason is FinishReason.INTERRUPT
    assert say(session, "r") == " fine"
    assert held(engine) == "User: q\nAssistant: abc\nUser: r\nAssistant: fine"


def test_the_plain_style_has_no_frame() -> None:
    engine = FakeEngine(in_turn(" a time", " end"), n_ctx=100)
    session = Session(engine, PLAIN)
    say(session, "Once upon")
    assert held(engine) == "Once upon a time"
    say(session, "The")
    assert held(engine) == "Once upon a time\nThe end"


def test_braces_in_a_message_are_kept() -> None:
    engine = FakeEngine(saying("!"), n_ctx=200)
    say(Session(engine, DIALOGUE, "{system} {0}"), "{text} {} {x!r}")
    assert held(engine) == "{system} {0}\n\nUser: {text} {} {x!r}\nAssistant:!"


def test_what_changes_a_conversation() -> None:
    session = Session(FakeEngine(saying(" x"), n_ctx=60), DIALOGUE)
    assert not session.changed
    with pytest.raises(PromptError):
        say(session, "x" * 60)
    assert not session.changed
    say(session, "q")
    assert session.changed
    session.changed = False
    session.reset()
    assert session.changed
    session.changed = False
    session.resume(session.record())
    assert session.changed


def test_a_full_context_is_not_computed_again_at_every_turn() -> None:
    engine = FakeEngine(lambda tokens: END if tokens[-1] == 88 else 88, n_ctx=600)
    session = Session(engine, DIALOGUE, "S.")
    dropped, computed = [], []
    for i in range(100, 160):
        say(session, f"message {i}")
        dropped.append(session.dropped_turns)
        computed.append(session.last.timings.computed_tokens)
        if session.dropped_turns:
            assert 200 < len(engine.tokens) <= 300
        assert len(engine.tokens) + 20 <= engine.n_ctx
    turn = len("\nUser: message 100\nAssistant:")
    late = computed[20:]
    assert sum(count > turn for count in late) <= 5
    assert sum(late) < 3 * turn * len(late)
    assert len([count for count in dropped if count]) >= 3


def test_a_long_message_keeps_the_newest_turn_if_both_fit() -> None:
    engine = FakeEngine(in_turn(" one", " two", " three"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    say(session, "a" * 40)
    say(session, "b" * 40)
    say(session, "c" * 90)
    assert session.dropped_turns == 1
    assert held(engine).startswith("User: bbb")


def test_the_sampler_is_freed_before_the_turn_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    engine = FakeEngine(saying(" abcdef"), n_ctx=200)
    session = Session(engine, DIALOGUE)
    monkeypatch.setattr(FakeSampler, "close", lambda self: events.append("freed"))
    monkeypatch.setattr(
        Session, "_reply_tokens", lambda self, text: (events.append("kept"), 65)[1:]
    )
    reply = session.reply("q", GREEDY, STOP)
    next(reply)
    reply.close()
    assert events == ["freed", "kept"]


# ---- undo, another answer, another system prompt


def test_undo_forgets_the_last_turn_and_keeps_the_cache() -> None:
    engine = FakeEngine(in_turn(" one", " two", " three"), n_ctx=500)
    session = Session(engine, DIALOGUE, "S.")
    say(session, "first")
    say(session, "second")
    session.changed = False
    turn = session.undo()
    assert turn is not None
    assert (turn.message, bytes(turn.reply)) == ("second", b" two")
    assert (session.n_turns, session.changed) == (1, True)
    say(session, "third")
    assert held(engine) == "S.\n\nUser: first\nAssistant: one\nUser: third\nAssistant: three"
    # all up to "User: " is held already
    assert session.last.timings.computed_tokens == len("third\nAssistant:")


def test_undo_of_nothing() -> None:
    session = Session(FakeEngine(saying(" x"), n_ctx=100), DIALOGUE)
    assert session.undo() is None
    assert not session.changed


def test_answering_again_computes_one_token_of_the_prompt() -> None:
    engine = FakeEngine(in_turn(" one", " two"), n_ctx=500)
    session = Session(engine, DIALOGUE)
    say(session, "first")
    turn = session.undo()
    assert turn is not None
    assert say(session, turn.message) == " two"
    # its logits are gone, all else is held
    assert session.last.timings.computed_tokens == 1
    assert held(engine) == "User: first\nAssistant: two"


def test_another_system_prompt_keeps_the_turns() -> None:
    engine = FakeEngine(in_turn(" one", " two", " three"), n_ctx=300)
    session = Session(engine, DIALOGUE, "Old.")
    say(session, "a")
    session.changed = False
    session.system = "New."
    assert (session.system, session.changed) == ("New.", True)
    say(session, "b")
    assert held(engine) == "New.\n\nUser: a\nAssistant: one\nUser: b\nAssistant: two"
    with pytest.raises(PromptError, match="--context"):
        session.system = "s" * 300
    assert session.system == "New."
    session.system = ""
    say(session, "c")
    assert held(engine).startswith("User: a")


def test_a_dialogpt_turn_ends_with_the_end_token_once() -> None:
    engine = FakeEngine(in_turn("one", "two"), n_ctx=100)
    session = Session(engine, STYLES["dialogpt"])
    say(session, "a")
    assert say(session, "b<|endoftext|>") == "two"
    assert list(engine.tokens).count(END) == 3
    assert held(engine) == "aoneb<|endoftext|>two"
    # the end of the reply was drawn, but never computed
    assert session.last.timings.computed_tokens == len("|b|") + len("<|endoftext|>") - 1 + 1


@pytest.mark.parametrize("reply", ["a<NL>b", "<NL><NL>x", "a<N", "<NL", "no", "a<<NL>NL>"])
def test_line_breaks_of_rinna(reply: str) -> None:
    engine = FakeEngine(saying(reply), n_ctx=300)
    session = Session(engine, STYLES["rinna"])
    assert say(session, "one\ntwo") == reply.replace("<NL>", "\n")
    assert held(engine).endswith("ユーザー: one<NL>two<NL>システム: " + reply)


def test_line_breaks_of_rinna_are_shown_as_they_come() -> None:
    session = Session(FakeEngine(saying("ab<NL>c"), n_ctx=300), STYLES["rinna"])
    assert list(session.reply("x", GREEDY, STOP)) == ["a", "b", "\nc"]
