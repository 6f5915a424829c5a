"""Our own unigram tokenizer agrees with llama.cpp's and sentencepiece; its table is checked."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TESTS
from tokenizer_folders import read, write_gguf

from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.text_rules import TextRules
from infer_os.native.unigram_tokenizer import (
    CharsMap,
    UnigramTokenizer,
    UnigramVocabulary,
    read_unigram,
)

TOKENIZERS = TESTS / "reference" / "tokenizers"


@pytest.fixture(params=["words", "bytes"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, LlamaModel]]:
    # without lower case: it is done before either tokenizer
    vocabulary = replace(read(TOKENIZERS / request.param), lowercase=False)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        yield request.param, model


def test_the_stored_tokens(loaded: tuple[str, LlamaModel]) -> None:
    name, model = loaded
    tokenizer = UnigramTokenizer(read_unigram(model.header))
    rows = json.loads((TOKENIZERS / name / "expected.json").read_text())
    for row in rows:
        text = row["text"].lower() if name == "words" else row["text"]
        if row["text"] in ("▁", "ΑΣ ΣΑΣ İI ǅ") and name == "words":
            continue
        assert tokenizer.encode(text, parse_special=False) == row["ids"], text


def test_llama_cpps_tokens_on_random_text(loaded: tuple[str, LlamaModel]) -> None:
    """With all bytes taken out, both must write the unknown token alike."""
    _, model = loaded
    vocabulary = read_unigram(model.header)
    bytes_gone = replace(vocabulary, types=[1 if t == 1 else 3 if t != 2 else 2
                                            for t in vocabulary.types])  # fmt: skip
    tokenizer = UnigramTokenizer(bytes_gone)
    letters = (
        "".join(t for t in vocabulary.tokens if len(t) < 4)
        + "   \n\t😀𠀀éＡか\u3099㍿\u00a0\x00<NL>"
    )
    source = random.Random(2)
    for _ in range(2000):
        text = "".join(source.choice(letters) for _ in range(source.randrange(40)))
        got = model.vocab._tokenize(text.encode(), False, False)
        assert tokenizer.encode(text, parse_special=False) == got, text


def test_special_tokens_are_found_like_llama_cpps(loaded: tuple[str, LlamaModel]) -> None:
    _, model = loaded
    tokenizer = UnigramTokenizer(read_unigram(model.header))
    for text in ("</s>", "</s></s>a", " a </s> b", "<s>it</s>", "<unk>a", "[PAD]</s>[PAD]"):
        assert tokenizer.encode(text) == model.vocab._tokenize(text.encode(), False, True)


def test_bos_and_eos_around_a_fallback(tmp_path: Path) -> None:
    vocabulary = replace(read(TOKENIZERS / "bytes"), add_bos=True, add_eos=True)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        inner = model.vocab.tokenize("😀", add_special=False)
        assert len(inner) == 4
        assert model.vocab.tokenize("😀") == [1, *inner, 2]
        assert model.vocab.tokenize("a") == [1, *model.vocab.tokenize("a", add_special=False), 2]


def test_a_user_defined_token_has_the_best_score() -> None:
    vocabulary = UnigramVocabulary(
        ["<unk>", "a", "b", "ab", "bc"], [0, -1, -1, -9, -0.5], [2, 1, 1, 4, 1], b"", False, False
    )
    assert UnigramTokenizer(vocabulary).encode("xabax") == [0, 3, 1, 0]


def test_a_vocabulary_without_unknown() -> None:
    with pytest.raises(ValueError, match="unknown"):
        UnigramTokenizer(UnigramVocabulary(["a"], [0.0], [1], b"", False, False))


# ---- the table of normalized characters


def unit(value: int) -> bytes:
    return struct.pack("<I", value)


def table(units: list[int], texts: bytes = b"x\0") -> bytes:
    return unit(4 * len(units)) + b"".join(map(unit, units)) + texts


def test_a_table_by_hand() -> None:
    """ "a" becomes "x": the root's children are at 256, the leaf of "a" 512 further."""
    units = [0] * 1024
    units[0] = 256 << 10
    at = 256 ^ ord("a")
    units[at] = ord("a") | 1 << 8 | 512 << 10
    units[at ^ 512] = 1 << 31 | 2  # the text at byte 2
    charsmap = CharsMap(table(units, b"y\0x\0"))
    assert charsmap.normalize(b"banana") == b"bxnxnx"
    assert charsmap.match(b"ab", 0) == (b"x", 1)
    assert CharsMap(b"").normalize(b"a") == b"a"


BAD_TABLES = {
    "short": b"ab",
    "empty": table([]),
    "odd size": unit(5) + bytes(20),
    "beyond": unit(4000) + bytes(40),
    "no texts": table([0] * 256, b""),
    "texts without an end": table([0] * 256, b"x"),
    "root beyond": table([1 << 10 << 10] + [0] * 255),
    "root near the end": table([0] * 100),
    "child beyond": table([0] + [ord("a") | 4000 << 10 if i == ord("a") else 0
                                 for i in range(1, 256)]),
    "text beyond": table([0] + [ord("a") | 1 << 8 if i == ord("a") else 77
                                for i in range(1, 256)]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_llama_cpp_would_end_on(tmp_path: Path, name: str) -> None:
    data = BAD_TABLES[name]
    with pytest.raises(ValueError, match="table of normalized characters"):
        CharsMap(data)
    vocabulary = replace(read(TOKENIZERS / "words"), charsmap=data)
    with pytest.raises(GgufError, match="precompiled_charsmap"):
        LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True)


def test_a_table_damaged_anywhere() -> None:
    """Damage is refused or harmless, and never a loop without an end."""
    good = read(TOKENIZERS / "words").charsmap
    source = random.Random(4)
    text = "ＡＢか\u3099㍿é½".encode()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(3):
            data[source.randrange(4, len(data))] = source.randrange(256)
        try:
            CharsMap(bytes(data)).normalize(text)
        except ValueError:
            continue


def test_a_table_that_is_no_array(tmp_path: Path) -> None:
    path = write_gguf(read(TOKENIZERS / "words"), tmp_path / "m.gguf")
    data = path.read_bytes()
    key = b"tokenizer.ggml.precompiled_charsmap"
    at = data.index(key) + len(key)
    # from an array of bytes to one of 8-bit booleans
    (kind,) = struct.unpack_from("<I", data, at + 4)
    assert kind in (0, 1)
    path.write_bytes(data[: at + 4] + struct.pack("<I", 7) + data[at + 8 :])
    read_gguf_header(path)
    with pytest.raises(GgufError, match="not an array of bytes"):
        LlamaModel(path, vocab_only=True)


# ---- what is done to text before


def test_text_rules() -> None:
    assert TextRules().apply("Ae\u0301", parse_special=True) == "Ae\u0301"
    assert TextRules("NFC").apply("Ae\u0301", parse_special=True) == "A\u00e9"
    lower = TextRules(lowercase=True, kept=("[A]", "[AB]"))
    assert lower.apply("X[A]Y[AB]Z", parse_special=True) == "x[A]y[AB]z"
    assert lower.apply("X[A]Y", parse_special=False) == "x[a]y"
    # letter by letter, as transformers has it
    assert lower.apply("ΑΣ", parse_special=True) == "ασ"


@pytest.mark.parametrize(
    "text", ["it is ", " ", "\n", "a    ", "\ufdfa", "e\u0301", "\u3000", "😀"]
)
def test_the_fewest_tokens_are_no_more_than_there_are(
    loaded: tuple[str, LlamaModel], text: str
) -> None:
    """Of which blanks are none: sentencepiece keeps one of many."""
    vocab = loaded[1].vocab
    for most in (1, 64):
        whole = text * 10_000
        fewest = vocab.fewest_tokens(whole, most)
        assert fewest == 0 or most < fewest <= len(vocab.tokenize(whole))
    assert vocab.fewest_tokens("it is so " * 100_000, 64) > 64
