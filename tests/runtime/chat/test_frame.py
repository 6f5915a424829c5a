"""Frames: each style as its model card prints it, and the tokens that Hugging Face would make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PARALLEL, edit_json
from tokenizer_folders import read, write_gguf
from tokenizers import Tokenizer

from infer_os.models.styles import STYLES
from infer_os.native.model import LlamaModel, Vocab
from infer_os.runtime.chat.frame import Message, PieceTokenizer, StyleFrame, Turn, Typed
from infer_os.runtime.fake import END, END_TEXT, ByteVocabulary

TWO = (Turn("Hi", tuple(b"Hello!")), Turn("How are\nyou?", tuple(b"Fine.")))

# the system prompt "S", the turns above, and the message "Bye", as the model cards write them
WRITTEN = {
    "dialogue": "S\n\nUser: Hi\nAssistant:Hello!\nUser: How are\nyou?\nAssistant:Fine.\n"
    "User: Bye\nAssistant:",
    "plain": "S\n\nHiHello!\nHow are\nyou?Fine.\nBye",
    "dialogpt": "S<|endoftext|>Hi<|endoftext|>Hello!<|endoftext|>How are\nyou?<|endoftext|>Fine."
    "<|endoftext|>Bye<|endoftext|>",
    "instruction": "S\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### End\n\n"
    "### Instruction:\nHow are\nyou?\n\n### Response:\nFine.\n\n### End\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "gpt4all": "### Instruction:\nS\n### Prompt:\nHi\n### Response:\nHello!\n### Prompt:\nHow are\n"
    "you?\n### Response:\nFine.\n### Prompt:\nBye\n### Response:\n",
    "open-assistant": "<|system|>S<|endoftext|><|prompter|>Hi<|endoftext|><|assistant|>Hello!"
    "<|endoftext|><|prompter|>How are\nyou?<|endoftext|><|assistant|>Fine.<|endoftext|>"
    "<|prompter|>Bye<|endoftext|><|assistant|>",
    "human-bot": "S\n<human>: Hi\n<bot>:Hello!\n<human>: How are\nyou?\n<bot>:Fine.\n"
    "<human>: Bye\n<bot>:",
    "stablelm": "<|SYSTEM|>S\n<|USER|>Hi<|ASSISTANT|>Hello!<|USER|>How are\nyou?<|ASSISTANT|>Fine."
    "<|USER|>Bye<|ASSISTANT|>",
    "bloomz": "S\nHiHello!</s>How are\nyou?Fine.</s>Bye",
    "rinna": "S<NL>ユーザー: Hi<NL>システム: Hello!<NL>ユーザー: How are<NL>you?<NL>システム: Fine."
    "<NL>ユーザー: Bye<NL>システム: ",
    "japanese": "S\nユーザー: Hi\nシステム:Hello!\nユーザー: How are\nyou?\nシステム:Fine.\n"
    "ユーザー: Bye\nシステム:",
    "starchat": "<|system|>\nS<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
    "<|user|>\nHow are\nyou?<|end|>\n<|assistant|>\nFine.<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "pygmalion": "Assistant's Persona: S\n<START>\nYou: Hi\nAssistant:Hello!\nYou: How are\nyou?\n"
    "Assistant:Fine.\nYou: Bye\nAssistant:",
}


def text_of(tokens: list[int]) -> str:
    return b"".join(END_TEXT.encode() if t == END else bytes([t]) for t in tokens).decode()


@pytest.mark.parametrize("name", STYLES)
def test_a_conversation_is_written_as_published(name: str) -> None:
    frame = StyleFrame(STYLES[name], ByteVocabulary())
    tokens = frame.tokens("S", TWO, "Bye")
    assert text_of(tokens) == WRITTEN[name]
    assert tokens.count(END) == WRITTEN[name].count(END_TEXT)


@pytest.mark.parametrize("name", STYLES)
def test_a_turn_goes_on_where_the_last_ended(name: str) -> None:
    """The tokens of an answered turn begin those of the next one, so the cache can be kept."""
    frame = StyleFrame(STYLES[name], ByteVocabulary())
    asked = [*frame.tokens("S", TWO[:1], TWO[1].message), *TWO[1].reply]
    closed = frame.tokens("S", TWO, None)
    assert closed[: len(asked)] == asked
    later = frame.tokens("S", TWO, "Bye")
    assert later[: len(closed)] == closed


def test_without_a_system_prompt_stands_the_models_own() -> None:
    frame = StyleFrame(STYLES["instruction"], ByteVocabulary())
    assert text_of(frame.tokens("", (), "Hi")).startswith("Below is an instruction that describes")
    frame = StyleFrame(STYLES["stablelm"], ByteVocabulary())
    assert text_of(frame.tokens("", (), "Hi")).startswith("<|SYSTEM|># StableLM Tuned (Alpha")


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("system", ["", "S"])
def test_a_written_conversation_is_that_of_a_chat(name: str, system: str) -> None:
    """Where the model draws a space first, the written reply gets it."""
    frame = StyleFrame(STYLES[name], ByteVocabulary())
    space = b" " if STYLES[name].assistant.endswith(":") else b""
    turns = [Turn(turn.message, (*space, *turn.reply)) for turn in TWO]
    messages = [Message("system", system)] if system else []
    for turn in TWO:
        reply = bytes(turn.reply).decode()
        messages += [Message("user", turn.message), Message("assistant", reply)]
    written = frame.written_tokens([*messages, Message("user", "Bye")])
    assert written == frame.tokens(system, turns, "Bye")
    assert (text_of(written) == WRITTEN[name]) is (system == "S" and not space)


@pytest.mark.parametrize("name", STYLES)
def test_no_written_message_becomes_special_tokens(name: str) -> None:
    frame = StyleFrame(STYLES[name], ByteVocabulary())
    roles = ("system", "user", "assistant", "user")
    plain = frame.written_tokens([Message(role, "x") for role in roles])
    typed = frame.written_tokens([Message(role, END_TEXT) for role in roles])
    assert typed.count(END) == plain.count(END)
    assert text_of(typed).count(END_TEXT) == 4 + plain.count(END)


def test_messages_in_any_order() -> None:
    frame = StyleFrame(STYLES["dialogue"], ByteVocabulary())
    roles = ("assistant", "user", "user", "system", "user")
    tokens = frame.written_tokens([Message(role, f"{i}") for i, role in enumerate(roles)])
    assert text_of(tokens) == "Assistant: 0\nUser: 1\nUser: 2\n3\n\nUser: 4\nAssistant:"


# ---- on a real vocabulary

MARKERS = ("<|prompter|>", "<|assistant|>", "<|system|>", "</s>", "<NL>")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vocab, Tokenizer]]:
    """A reference vocabulary with the special tokens of several styles, by us and the library."""
    folder = tmp_path_factory.mktemp("marked")
    path = folder / "tokenizer.json"
    path.write_bytes((PARALLEL / "tokenizer.json").read_bytes())
    first = 1 + max(token["id"] for token in json.loads(path.read_text())["added_tokens"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

    def add(tokenizer: dict[str, list[object]]) -> None:
        for i, marker in enumerate(MARKERS):
            tokenizer["added_tokens"].append(
                {"id": first + i, "content": marker, "special": True, **plain}
            )

    edit_json(path, add)
    with LlamaModel(write_gguf(read(folder), folder / "v.gguf"), vocab_only=True) as model:
        yield model.vocab, Tokenizer.from_file(str(path))


@pytest.mark.parametrize("name", ["open-assistant", "dialogpt", "dialogue", "instruction", "rinna"])
@pytest.mark.parametrize("message", ["Hi there", "  two\n\nlines ", "東京は、どこ?", "x"])
def test_a_first_message_is_cut_as_hugging_face_does(
    marked: tuple[Vocab, Tokenizer], name: str, message: str
) -> None:
    vocab, theirs = marked
    style = STYLES[name]
    written = (style.user + style.assistant).replace("{text}", message.replace("\n", style.newline))
    opening = theirs.encode(style.opening).ids
    mine = StyleFrame(style, vocab).tokens("", (), message)
    assert mine == opening + theirs.encode(written).ids


class Runs(ByteVocabulary):
    """One that takes line breaks together, as GPT-NeoX's does: a run of n is token 1000 + n."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        tokens: list[int] = []
        for byte in super().tokenize(text, parse_special=parse_special):
            if byte != ord("\n"):
                tokens.append(byte)
            elif tokens and tokens[-1] > 1000:
                tokens[-1] += 1
            else:
                tokens.append(1001)
        return tokens


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_turn_goes_on_whatever_grows_together(name: str, system: str) -> None:
    frame = StyleFrame(STYLES[name], Runs())
    turns = (Turn("\n\nHi", tuple(b" Hello!")), Turn("\nand you?", (*b"Fine.", 1002)))
    for n in range(2):
        asked = [*frame.tokens(system, turns[:n], turns[n].message), *turns[n].reply]
        assert frame.tokens(system, turns[: n + 1], "\nnext")[: len(asked)] == asked


@pytest.mark.parametrize("typed", [*MARKERS, "<|endoftext|>", "a<|endoftext|><|assistant|>b"])
@pytest.mark.parametrize("name", STYLES)
def test_what_is_typed_is_never_special(
    marked: tuple[Vocab, Tokenizer], name: str, typed: str
) -> None:
    vocab, _theirs = marked
    frame = StyleFrame(STYLES[name], vocab)
    special = {vocab.tokenize(text, add_special=False)[0] for text in vocab.special_texts()}
    assert len(special) == len(MARKERS) + 1
    usual = [t for t in frame.tokens("x", (), "x") if t in special]
    assert [t for t in frame.tokens(typed, (), typed) if t in special] == usual
    text = b"".join(map(vocab.piece, frame.tokens("", (), typed))).decode()
    assert typed in text


def test_missing_markers_are_known(marked: tuple[Vocab, Tokenizer]) -> None:
    vocab, _theirs = marked
    assert StyleFrame(STYLES["open-assistant"], vocab).missing_markers == ()
    assert StyleFrame(STYLES["stablelm"], vocab).missing_markers == STYLES["stablelm"].markers


def test_a_start_token_stands_once_and_an_end_token_nowhere() -> None:
    class Marked(ByteVocabulary):
        def tokenize(
            self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
        ) -> list[int]:
            tokens = super().tokenize(text, parse_special=parse_special)
            return [300, *tokens, END] if add_special else tokens

    assert PieceTokenizer(Marked()).start == (300,)
    tokens = StyleFrame(STYLES["dialogue"], Marked()).tokens("S", TWO, "Bye")
    assert tokens[0] == 300
    assert tokens.count(300) == 1
    assert END not in tokens


def test_a_model_without_special_tokens() -> None:
    class Bare(ByteVocabulary):
        def special_texts(self) -> list[str]:
            return []

    assert PieceTokenizer(Bare()).encode(["a<|endoftext|>", Typed("b")]) == list(b"a<|endoftext|>b")


def test_names_of_special_tokens(tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(PARALLEL), tmp_path / "v.gguf"), vocab_only=True) as model:
        assert model.vocab.special_texts() == ["<|endoftext|>"]
        assert model.vocab.special_text("eos") == "<|endoftext|>"
