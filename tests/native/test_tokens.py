"""Our vocabulary gives the tokens that the ``tokenizers`` library gives, on a nasty list."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import BUNDLED, REFERENCES, Converter
from tokenizers import Tokenizer

from infer_os.native.model import LlamaModel, Vocab

NASTY = {
    "empty": "",
    "letter": "a",
    "words": "The quick brown fox",
    "leading space": " leading and trailing ",
    "newline": "\n",
    "newlines": "\n\n\n\n\n",
    "crlf": "one\r\ntwo\r\n",
    "carriage returns": "\r\r",
    "tab": "\t",
    "tabs": "\t\t\tx\t\ty",
    "mixed white": " \t \n  \n\t x  \n",
    "white between words": "a  b   c    d     e",
    "spaces then newline": "    \n      \n",
    "no-break space": "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g",
    "emoji": "😀😃🎉",
    "emoji zwj": "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈",
    "flag": "🇩🇪🇫🇷",
    "keycap": "1️⃣",
    "cjk": "東京は日本の首都です。中文字符，标点。한국어",
    "cjk rare": "𠀀𠮷",
    "thai and hindi": "สวัสดี नमस्ते",
    "arabic": "مرحبا بالعالم ١٢٣",
    "hebrew marks": "שָׁלוֹם",
    "nfc": unicodedata.normalize("NFC", "éàüñ Å ệ"),
    "nfd": unicodedata.normalize("NFD", "éàüñ Å ệ"),
    "many marks": "Z̸̡̢̛̫͙̣a̷͎͠l̶g̴o",
    "mark alone": "\u0301x\u0308",
    "mark after space": " \u0301 \u0301a",
    "hangul jamo": "\u1112\u1161\u11ab",
    "composition exclusion": "\u0958\u2126\u212b",
    "digits": "0 12 345 6789 1234567890 3.14159 1,000,000",
    "other digits": "٠١٢ ²³ ½ Ⅻ ①",
    "letters and digits": "a1b2c3 4x5",
    "apostrophes": "I'm you're he'll she'd they've it's don't 's 'S 'RE 'x ''s",
    "curly apostrophes": "I’m you’re ‘quoted’",
    "punctuation": "!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`\"'",
    "punctuation runs": "... --- !!! ?!?! ((()))",
    "code": "def f(x):\n    return x ** 2  # square\n\n\tif (a && b) { c[0]++; }",
    "control": "\x00\x01\x02\x1b[31m\x7f",
    "nul inside": "a\x00b",
    "zero width": "a\u200bb\u200cc\ufeffd\u00ade",
    "private use": "\ue000\U000f0000",
    "last codepoint": "\U0010ffff\uffff\ufffe",
    "replacement": "\ufffd",
    "special": "<|endoftext|>",
    "special inside": "a<|endoftext|>b <|endoftext|> c",
    "specials": "<|endoftext|><|endoftext|>",
    "nearly special": "<|endoftext| > <|endoftext <|ENDOFTEXT|> |endoftext|>",
    "added spaces": "x  y    z        w",
    "long word": "antidisestablishmentarianism" * 20,
    "one letter": "a" * 3000,
}

INVALID = [
    b"\xff", b"\x80", b"a\xffb", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\x98",
    b"\xf0\x28\x8c\x28", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80",
    b"ok \xfe\xff ok", b"\xef\xbb\xbfbom", bytes(range(256)), bytes(range(255, -1, -1)),
]  # fmt: skip

#: One folder for every tokenizer that differs.
FOLDERS = list(
    {(path / "tokenizer.json").read_bytes(): path for path in [*BUNDLED, *REFERENCES]}.values()
)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def vocab(folder: Path, converted: Converter) -> Iterator[Vocab]:
    with LlamaModel(converted(folder), vocab_only=True) as model:
        yield model.vocab


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_nasty_texts(vocab: Vocab, oracle: Tokenizer, text: str) -> None:
    assert vocab.tokenize(text) == oracle.encode(text).ids


def test_runs_of_spaces(vocab: Vocab, oracle: Tokenizer) -> None:
    for n in range(1, 31):
        for text in (" " * n, "a" + " " * n + "b", "\n" + " " * n + "\n", " " * n + "'s"):
            assert vocab.tokenize(text) == oracle.encode(text).ids, repr(text)


@pytest.mark.parametrize("data", INVALID, ids=repr)
def test_invalid_utf8_reads_as_replacement_characters(
    vocab: Vocab, oracle: Tokenizer, data: bytes
) -> None:
    assert vocab.tokenize(data) == oracle.encode(data.decode("utf-8", "replace")).ids


def test_special_tokens_can_be_read_as_letters(vocab: Vocab, folder: Path) -> None:
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.encode_special_tokens = True
    text = "a<|endoftext|>b"
    assert vocab.tokenize(text, parse_special=False) == oracle.encode(text).ids
    assert vocab.tokenize(text, parse_special=False) != vocab.tokenize(text)


def test_composed_and_decomposed_spellings_agree_where_the_tokenizer_normalizes(
    vocab: Vocab, oracle: Tokenizer
) -> None:
    composed, decomposed = "caf\u00e9 \u1ec7", "cafe\u0301 e\u0323\u0302"
    same = oracle.encode(composed).ids == oracle.encode(decomposed).ids
    assert (vocab.tokenize(composed) == vocab.tokenize(decomposed)) == same


def test_lone_surrogates_do_not_crash(vocab: Vocab) -> None:
    for text in ("\ud800", "a\udfffb", "\udc80\udcff", "\ude00\ud83d"):
        tokens = vocab.tokenize(text)
        assert tokens
        vocab.detokenize(tokens).decode()


def test_a_long_text(vocab: Vocab, oracle: Tokenizer) -> None:
    text = "".join(NASTY.values())
    text *= 100_000 // len(text) + 1
    assert len(text) >= 100_000
    assert vocab.tokenize(text) == oracle.encode(text).ids


def _random_texts(seed: int, count: int) -> Iterator[str]:
    """Strings over pools that make hard neighbours: white space, marks, quotes, scripts."""
    draw = random.Random(seed)
    pools = (
        " \t\n\r", "     ", "abcdeXYZ", "'\u2019", "0123456789", ".,!?-()", "éüñß", "e\u0301\u0323",
        "東京中文字", "한글", "\u00a0\u200b\u200d\ufe0f", "😀👩🏽💻", "αβγжщя", "س ل م", "<|>",
    )  # fmt: skip
    words = ("the", " and", "'s", "'re", "<|endoftext|>", "    ", "  ", "\n\n", "don't", " I'll")
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            if draw.random() < 0.25:
                parts.append(draw.choice(words))
            elif draw.random() < 0.05:
                parts.append(chr(draw.choice((draw.randrange(0x20, 0xD800), 0x1F600))))
            else:
                pool = draw.choice(pools)
                parts.append("".join(draw.choice(pool) for _ in range(draw.randint(1, 5))))
        yield "".join(parts)


def test_random_texts(vocab: Vocab, oracle: Tokenizer) -> None:
    texts = list(_random_texts(7, 4000))
    expected = oracle.encode_batch(texts)
    wrong = [
        text
        for text, right in zip(texts, expected, strict=True)
        if vocab.tokenize(text) != right.ids
    ]
    assert not wrong, f"{len(wrong)} differ, first {wrong[:3]!r}"


def test_tokens_give_their_text_back(vocab: Vocab) -> None:
    texts = [*NASTY.values(), *_random_texts(8, 500)]
    for text in texts:
        text = unicodedata.normalize("NFC", text.replace("<|endoftext|>", ""))
        tokens = vocab.tokenize(text, parse_special=False)
        assert vocab.detokenize(tokens).decode() == text


def test_control_tokens_give_no_text(vocab: Vocab) -> None:
    (token,) = vocab.tokenize("<|endoftext|>")
    assert vocab.piece(token) == b""
    assert vocab.is_end(token)


def test_ordinary_tokens_end_nothing(vocab: Vocab, oracle: Tokenizer) -> None:
    end = oracle.token_to_id("<|endoftext|>")
    assert [t for t in range(vocab.n_tokens) if vocab.is_end(t)] == [end]


LONG = {
    "one letter": "x", "words": "It is a truth ", "spaces": " ", "line ends": "\n", "ü": "ü",
    "marks": "e\u0301\u0323\u0302", "jamo": "\u1112\u1161\u11ab", "special": "<|endoftext|>",
    "emoji": "😀", "nul": "\0", "mixed": "a  \n1 ",
}  # fmt: skip


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_the_fewest_tokens_are_no_more_than_there_are(vocab: Vocab, text: str) -> None:
    for most in (1, 8, 64, 500):
        for n_letters in (10, 5_000, 40_000):
            whole = (text * n_letters)[:n_letters]
            n_tokens = len(vocab.tokenize(whole))
            for spelled in (whole, whole.encode()):
                fewest = vocab.fewest_tokens(spelled, most)
                assert fewest == 0 or most < fewest <= n_tokens, (most, n_letters)
            # what is far too long is known to be
            if n_letters == 40_000 and n_tokens > 4 * (most + 4096):
                assert fewest > most


def test_a_long_text_is_never_tokenized_whole(
    vocab: Vocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    real = vocab.tokenize

    def watched(text: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return real(text)

    monkeypatch.setattr(vocab, "tokenize", watched)
    for text in ("x", "It is ", "\n"):
        assert vocab.fewest_tokens(text * 1_000_000, 64) > 64
    assert longest < 100_000
