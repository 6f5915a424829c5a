"""Sentencepiece's unigram models: the tokens of the sentencepiece library, through llama.cpp.

The models and what the library makes of them were stored by tests/reference/make_tokenizers.py.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers import TESTS
from tokenizer_folders import read, write_gguf

from infer_os.convert.errors import ConvertError, FileFormatError, UnsupportedError
from infer_os.convert.sentencepiece_file import read_sentencepiece
from infer_os.convert.vocabulary import GgufVocabulary, TokenType, fit_to_rows
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.runtime.text import TextStream

MODELS = sorted(path.parent for path in (TESTS / "reference" / "tokenizers").glob("*/spiece.model"))
WORDS, BYTES = (TESTS / "reference" / "tokenizers" / name for name in ("words", "bytes"))

# sentencepiece takes this letter at the end of a text for a space, llama.cpp does not
LITERAL_SPACE_SIGN = {"▁"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model of words, to change."""
    return Path(shutil.copytree(WORDS, tmp_path / "words"))


def rows(path: Path) -> list[dict[str, Any]]:
    """Text, ids and decoded text by the sentencepiece library."""
    value: list[dict[str, Any]] = json.loads((path / "expected.json").read_text())
    return value


@pytest.mark.parametrize("graph", ["gptneox", "gpt2"])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_tokens_of_the_real_library(path: Path, graph: str, tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(path), tmp_path / "m.gguf", graph), vocab_only=True) as model:
        differing = {
            row["text"]
            for row in rows(path)
            # control tokens in text are Hugging Face's affair
            if model.vocab.tokenize(row["text"], parse_special=False) != row["ids"]
        }
    assert differing == (LITERAL_SPACE_SIGN if path == WORDS else set())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_streamed_text_of_the_real_library(path: Path, tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(path), tmp_path / "m.gguf"), vocab_only=True) as model:
        for row in rows(path):
            if 0 in row["ids"]:
                continue  # the library writes " ⁇ " for the unknown token, we write nothing
            stream = TextStream()
            text = "".join(stream.push(model.vocab.piece(i)) for i in row["ids"]) + stream.finish()
            # the space that was put before the text stays: a generation goes on after other text
            assert (text.lstrip(" ") if path == WORDS else text) == row["decoded"]


def test_bytes_of_a_character_arrive_together(tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(BYTES), tmp_path / "m.gguf"), vocab_only=True) as model:
        ids = model.vocab.tokenize("x😀y")
        assert len(ids) == 6
        stream = TextStream()
        parts = [stream.push(model.vocab.piece(i)) for i in ids]
        assert parts == ["x", "", "", "", "😀", "y"]


def test_special_tokens_in_text(tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(BYTES), tmp_path / "m.gguf"), vocab_only=True) as model:
        tokenize = model.vocab.tokenize
        assert tokenize("a</s>b") == [*tokenize("a"), 2, *tokenize("b")]
        # bytes on both sides, so that our own fallback cuts the text
        assert tokenize("😀</s>😀<s>") == [*tokenize("😀"), 2, *tokenize("😀"), 1]
        assert 2 not in tokenize("😀</s>", parse_special=False)
        assert [model.vocab.piece(i) for i in range(4)] == [b""] * 4
        assert model.vocab.is_end(2)


def test_lower_case_spares_special_tokens(tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(WORDS), tmp_path / "m.gguf"), vocab_only=True) as model:
        tokens = [model.vocab.tokenize(text) for text in ("The CAT[SEP]It", "the cat[SEP]it")]
        assert tokens[0] == tokens[1]
        assert read(WORDS).tokens.index("[SEP]") in tokens[0]


def test_nothing_is_added_around_a_text(tmp_path: Path) -> None:
    with LlamaModel(write_gguf(read(WORDS), tmp_path / "m.gguf"), vocab_only=True) as model:
        assert model.vocab.tokenize("") == []
        assert model.vocab.tokenize("it") == model.vocab.tokenize("it", add_special=False)


def test_one_letter_of_many(tmp_path: Path) -> None:
    """The normalizer may write more tokens than the text has bytes."""
    with LlamaModel(write_gguf(read(WORDS), tmp_path / "m.gguf"), vocab_only=True) as model:
        alone = model.vocab.tokenize("\ufdfa", parse_special=False)
        assert len(model.vocab.tokenize("\ufdfa" * 50)) > 3 * len(alone)


def test_types_and_notes() -> None:
    words, with_bytes = read(WORDS), read(BYTES)
    types = dict(zip(words.tokens, words.types, strict=True))
    marks = ("<s>", "</s>", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert {types[mark] for mark in marks} == {TokenType.CONTROL}
    assert (types["<unk>"], types["<NL>"]) == (TokenType.UNKNOWN, TokenType.NORMAL)
    assert with_bytes.types.count(TokenType.BYTE) == 256
    assert words.special == {
        "unk": 0, "bos": 1, "eos": 2, "pad": 3, "cls": types_index(words, "[CLS]"),
        "sep": types_index(words, "[SEP]"), "mask": types_index(words, "[MASK]"),
    }  # fmt: skip
    assert any("lower-cases" in note for note in words.notes)
    assert any("bytes' tokens" in note for note in with_bytes.notes)
    assert all(any("end token" in note for note in v.notes) for v in (words, with_bytes))


def types_index(vocabulary: GgufVocabulary, text: str) -> int:
    return vocabulary.tokens.index(text)


def test_padding_is_never_matched(tmp_path: Path) -> None:
    vocabulary = fit_to_rows(read(BYTES), 600)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        assert max(model.vocab.tokenize("a[PAD590]b")) < 590
        assert model.vocab.n_normal == len(read(BYTES).tokens)
    assert len(vocabulary.scores) == 600


def test_a_row_less_than_pieces() -> None:
    with pytest.raises(UnsupportedError, match="rows"):
        fit_to_rows(read(BYTES), 500)


def test_added_tokens_beyond_the_pieces(folder: Path, tmp_path: Path) -> None:
    size = len(read(folder).tokens)
    (folder / "added_tokens.json").write_text(json.dumps({"<extra_id_0>": size + 2}))
    vocabulary = read(folder)
    assert vocabulary.tokens[size:] == (f"[PAD{size}]", f"[PAD{size + 1}]", "<extra_id_0>")
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        assert model.vocab.tokenize("it<extra_id_0>")[-1] == size + 2


# ---- the model file, written by hand


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float, kind: int = 1) -> bytes:
    body = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return message(1, body + number(3, kind))


UNKNOWN = piece("<unk>", 0, 2)
SIMPLE = UNKNOWN + piece("▁", -2) + piece("a", -3) + piece("b", -4)


def spiece(folder: Path, data: bytes) -> Path:
    (folder / "spiece.model").write_bytes(data)
    return folder


def pieces_of(vocabulary: GgufVocabulary, text: str, target: Path) -> list[str]:
    with LlamaModel(write_gguf(vocabulary, target), vocab_only=True) as model:
        return [vocabulary.tokens[i] for i in model.vocab.tokenize(text)]


def test_defaults_of_the_format(tmp_path: Path) -> None:
    model = read_sentencepiece(spiece(tmp_path, SIMPLE) / "spiece.model")
    assert (model.algorithm, model.byte_fallback, model.charsmap) == ("unigram", False, b"")
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (True, True)
    # 64-bit and unknown fields are passed over
    extra = varint(9 << 3 | 1) + bytes(8) + message(12, b"xyz") + number(13, 1 << 60)
    assert read_sentencepiece(spiece(tmp_path, extra + SIMPLE) / "spiece.model") == model


def test_a_user_defined_piece_does_not_cut_the_text(tmp_path: Path) -> None:
    data = SIMPLE + piece("<n>", 0, 4) + piece("aa", -100)
    vocabulary = read(spiece(tmp_path, data))
    target = tmp_path / "m.gguf"
    assert pieces_of(vocabulary, "a<n>b", target) == ["▁", "a", "<n>", "b"]
    # the price of an unknown letter follows the lowest score, here -100
    assert vocabulary.scores[4] == pytest.approx(3 * -2 - 0.1)


def test_a_user_defined_piece_is_never_below_the_lowest(tmp_path: Path) -> None:
    vocabulary = read(spiece(tmp_path, SIMPLE + piece("<new line>"[:4] + ">" * 9, 0, 4)))
    assert vocabulary.scores[4] == -4


def test_a_user_defined_piece_with_a_space_cuts_the_text(tmp_path: Path) -> None:
    vocabulary = read(spiece(tmp_path, SIMPLE + piece("a b", 0, 4)))
    assert vocabulary.types[4] is TokenType.USER_DEFINED


def test_unused_pieces_are_not_matched(tmp_path: Path) -> None:
    vocabulary = read(spiece(tmp_path, SIMPLE + piece("ab", -1, 5) + piece("c", -1, 5)))
    target = tmp_path / "m.gguf"
    assert pieces_of(vocabulary, "ab", target) == ["▁", "a", "b"]
    assert pieces_of(vocabulary, "c", target) == ["▁", "<unk>"]


def test_spaces_kept_are_noted(tmp_path: Path) -> None:
    vocabulary = read(spiece(tmp_path, SIMPLE + message(3, number(4, 0))))
    assert (vocabulary.add_space_prefix, vocabulary.remove_extra_whitespaces) == (True, False)
    assert any("a text of only spaces" in note for note in vocabulary.notes)
    assert pieces_of(vocabulary, "a  b ", tmp_path / "m.gguf") == list("▁a▁▁b▁")


REFUSED: dict[str, tuple[bytes, type[ConvertError], str]] = {
    "bpe": (SIMPLE + message(2, number(3, 2)), UnsupportedError, "type 'bpe'"),
    "word": (SIMPLE + message(2, number(3, 3)), UnsupportedError, "type 'word'"),
    "of no known type": (SIMPLE + message(2, number(3, 77)), UnsupportedError, "type '77'"),
    "suffix": (SIMPLE + message(2, number(24, 1)), UnsupportedError, "whitespace_as_suffix"),
    "spaces not escaped": (SIMPLE + message(3, number(5, 0)), UnsupportedError, "escape_white"),
    "no prefix, spaces removed": (
        SIMPLE + message(3, number(3, 0)), UnsupportedError, "without add_dummy_prefix"),
    "empty": (b"", FileFormatError, "no pieces"),
    "text": (b"hello world", FileFormatError, "not a sentencepiece model"),
    "cut off": (SIMPLE[:-3], FileFormatError, "cut off"),
    "ends in a number": (SIMPLE + b"\x80", FileFormatError, "within a number"),
    "endless number": (b"\xff" * 30, FileFormatError, "too long"),
    "a group": (varint(3 << 3 | 3), FileFormatError, "wire type 3"),
    "a number for a piece": (number(1, 5), FileFormatError, "not a message"),
    "a number for a text": (
        message(1, number(1, 5)), FileFormatError, "a number instead of bytes"),
    "bytes for a type": (
        message(1, message(1, b"a") + message(3, b"b")), FileFormatError, "bytes instead"),
    "a score of three bytes": (
        message(1, message(1, b"a") + message(2, b"abc")), FileFormatError, "not a sentence"),
    "a text that is not utf-8": (message(1, message(1, b"\xff")), FileFormatError, "utf-8"),
    "an empty piece": (UNKNOWN + piece("", 0), FileFormatError, "empty"),
    "a score that is no number": (
        UNKNOWN + piece("a", float("nan")), FileFormatError, "score nan"),
    "an endless score": (UNKNOWN + piece("a", float("-inf")), FileFormatError, "score -inf"),
    "a type beyond": (UNKNOWN + piece("a", 0, 9), FileFormatError, "PieceType"),
    "no unknown": (piece("a", 0), FileFormatError, "0 unknown tokens"),
    "two unknown": (UNKNOWN + piece("u", 0, 2), FileFormatError, "2 unknown tokens"),
    "twice": (SIMPLE + piece("a", 0), FileFormatError, "two tokens with the text 'a'"),
    "a byte piece of another form": (
        SIMPLE + piece("<0xZZ>", 0, 6), FileFormatError, "'<0xZZ>'"),
    "a short table": (SIMPLE + message(3, message(2, b"abc")), FileFormatError, "malformed table"),
    "a table beyond": (
        SIMPLE + message(3, message(2, struct.pack("<I", 400) + bytes(100))), FileFormatError,
        "malformed table"),
    "a table that leaves itself": (
        SIMPLE + message(3, message(2, struct.pack("<II", 4, 1 << 20) + b"x\0")), FileFormatError,
        "leaves its bounds"),
    "a table without an end": (
        SIMPLE + message(3, message(2, struct.pack("<II", 4, 0) + b"x")), FileFormatError,
        "malformed table"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_file_that_is_refused(tmp_path: Path, name: str) -> None:
    data, error, part = REFUSED[name]
    with pytest.raises(error) as caught:
        read(spiece(tmp_path, data))
    assert type(caught.value) is error
    assert part in str(caught.value)


def test_a_model_file_cut_anywhere(folder: Path) -> None:
    data = (folder / "spiece.model").read_bytes()
    for size in range(0, len(data), 7):
        spiece(folder, data[:size])
        try:
            read(folder)
        except ConvertError:
            continue


@pytest.mark.parametrize(
    ("settings", "error", "part"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, UnsupportedError, "'LlamaTokenizer'"),
        ({"added_tokens_decoder": {"3": {"content": "<x>"}}}, FileFormatError, "'<x>'"),
        ({"added_tokens_decoder": {"900000": {"content": "<x>"}}}, FileFormatError, "900000"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(
    folder: Path, settings: Any, error: type[ConvertError], part: str
) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(error) as caught:
        read(folder)
    assert type(caught.value) is error
    assert part in str(caught.value)


def test_keys_of_the_file(tmp_path: Path) -> None:
    vocabulary = read(WORDS)
    metadata = read_gguf_header(write_gguf(vocabulary, tmp_path / "m.gguf")).metadata
    assert metadata["tokenizer.ggml.model"] == "t5"
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["inferos.tokenizer.lowercase"] is True
    charsmap = bytes(b & 0xFF for b in metadata["tokenizer.ggml.precompiled_charsmap"])
    assert charsmap == vocabulary.charsmap != b""
    assert "tokenizer.ggml.merges" not in metadata
