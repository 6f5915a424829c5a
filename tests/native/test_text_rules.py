"""Flags of added tokens, normalizers, spaces before text: the ``tokenizers`` library's tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_parts import STRING, GgufParts, Key
from helpers import PARALLEL, Converter, copy_checkpoint, edit_json
from tokenizer_folders import read, tokenize_all, write_gguf
from tokenizers import Regex, Tokenizer, normalizers

from infer_os.convert.errors import UnsupportedError
from infer_os.native import text_rules
from infer_os.native.errors import GgufError, ModelLoadError
from infer_os.native.model import LlamaModel
from infer_os.native.normalizers import apply, read_step, read_steps

Json = dict[str, Any]
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def token(text: str, *flags: str, special: bool = False) -> Json:
    return {"content": text, "special": special, **{flag: flag in flags for flag in FLAGS}}


def special(text: str, *flags: str) -> Json:
    return token(text, *flags, special=True)


def seq(*steps: Json) -> Json:
    return {"type": "Sequence", "normalizers": list(steps)}


def replace(pattern: str, content: str, kind: str = "String") -> Json:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


NFC, NFD, NFKC, NFKD = ({"type": form} for form in ("NFC", "NFD", "NFKC", "NFKD"))
LOWERCASE, STRIP_ACCENTS, NMT = ({"type": kind} for kind in ("Lowercase", "StripAccents", "Nmt"))
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
STRIP_LEFT = STRIP | {"strip_right": False}
PREPEND = {"type": "Prepend", "prepend": "_ "}
SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

FLAGGED = [
    token("<left>", "lstrip", "normalized"), token("<right>", "rstrip"),
    token("<both>", "lstrip", "rstrip"), token("word", "single_word", "normalized"),
    token("<w>", "single_word", "lstrip"), special("<mask>", "lstrip", "normalized"),
    special("<end>", "rstrip"), special("<one>", "single_word"), token("rd", "normalized"),
    token("or", "single_word", "lstrip", "rstrip"), token("\n\n", "normalized"),
]  # fmt: skip
#: The library itself fails where a token's text is normalized to nothing.
STRIPPED = [entry for entry in FLAGGED if entry["content"].strip()]
TWO_PASSES = [
    token("ABc", "normalized"), token("abC"), token("bcd", "normalized"), token("cde"),
    token("\u00e9x", "normalized"), token("e\u0301y", "normalized"), token("\u00e9z"),
    token("K"), special("<B>", "normalized"), special("<C>"), token("fi"), token(" a"),
    token("  ", "normalized"), token("A", "single_word"), token("<"), token("C>", "normalized"),
]  # fmt: skip

#: Added tokens, the normalizer, and a change of the pre-tokenizer.
FEATURES: dict[str, tuple[list[Json], Json | None, Json | None]] = {
    "flags": (FLAGGED, None, None),
    "flags and NFC": (FLAGGED, NFC, None),
    "flags and a space": (FLAGGED, None, SPACED),
    "two passes": (TWO_PASSES, None, None),
    "two passes and NFC": (TWO_PASSES, NFC, None),
    "two passes and NFD": (TWO_PASSES, NFD, None),
    "two passes, lower case": (TWO_PASSES, seq(NFKC, LOWERCASE), None),
    "lower case": ([], LOWERCASE, None),
    "an empty sequence": (TWO_PASSES, seq(), None),
    "forms and accents": (TWO_PASSES, seq(NFD, STRIP_ACCENTS, LOWERCASE, NFKC), None),
    "strip and prepend": (STRIPPED, seq(STRIP, PREPEND), None),
    "strip the left": (STRIPPED, STRIP_LEFT, SPACED),
    "replace": (TWO_PASSES, seq(replace("b", "BA"), seq(replace("``", '"')), NFKD), None),
    "replace white space": (FLAGGED, seq(replace(r"\s{3,}", "-", "Regex"), NFC), None),
    "replace sets": (TWO_PASSES, replace(r"[a-c]+\.?", "<", "Regex"), None),
    "replace a non-space": (STRIPPED, replace(r"\S\n", "or ", "Regex"), None),
    "nmt": (TWO_PASSES, seq(NMT, NFKC), None),
    "a space": (TWO_PASSES, None, SPACED),
}  # fmt: skip


def changed(place: Path, added: list[Json], normalizer: Json | None, pre: Json | None) -> Path:
    """A GPT-NeoX tokenizer with other parts."""
    folder = copy_checkpoint(PARALLEL, place)

    def change(data: Json) -> Json:
        if normalizer and "Strip" in json.dumps(normalizer):
            data["added_tokens"] = [t for t in data["added_tokens"] if t["content"].strip()]
        first = max([*data["model"]["vocab"].values(), *(t["id"] for t in data["added_tokens"])])
        # a token of the vocabulary keeps its id
        known, number = data["model"]["vocab"], first + 1
        there = {entry["content"] for entry in data["added_tokens"]}
        for entry in (entry for entry in added if entry["content"] not in there):
            i = known.get(entry["content"])
            if i is None:
                i, number = number, number + 1
            data["added_tokens"].append(entry | {"id": i})
        data["normalizer"] = normalizer
        data["pre_tokenizer"] = pre or data["pre_tokenizer"]
        return data

    edit_json(folder / "tokenizer.json", change)
    return folder


def random_texts(added: list[Json], count: int) -> Iterator[str]:
    draw = random.Random(11)
    letters = (
        "ABCabcdeKxyz fi 019 <>_.,\n\t\r``\u00a0\u3000\u2028\u0085\x1c\x1f\u200b\u200d\u2581\ufeff"
        "\u00e9\u0301\u0338\u212a\uff21\ufb01\u00c9\u0130\u03a3\u0903\u24b6東😀\x00\x7f\u1f88"
    )
    words = [*(t["content"] for t in added), "abcde", "ABC", "word ", " Word", "e\u0301", "  "]
    words += ["<|endoftext|>", "the", "\u0301", " ", "\n"]
    for _ in range(count):
        parts = [draw.choice(words if draw.random() < 0.6 else letters) for _ in range(12)]
        yield "".join(parts[: draw.randint(0, 12)])


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_random_texts(tmp_path: Path, name: str, parse_special: bool) -> None:
    folder = changed(tmp_path / "checkpoint", *FEATURES[name])
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.encode_special_tokens = not parse_special
    texts = list(random_texts(FEATURES[name][0], 3000))
    got = tokenize_all(folder, texts, tmp_path / "v.gguf", parse_special=parse_special)
    want = [encoding.ids for encoding in oracle.encode_batch(texts)]
    wrong = [text for text, a, b in zip(texts, got, want, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} differ, first {min(wrong, key=len)!r}"
    assert not parse_special or len(set(texts)) > 2500


@pytest.mark.parametrize("form", ["Lowercase", "StripAccents", "Nmt", "NFC", "Strip", "Regex"])
def test_every_code_point(form: str) -> None:
    """Beyond what Unicode added after one library's tables: planes and blocks that both know."""
    step: Json = {
        "Strip": STRIP, "Regex": replace(r"\s", "-", "Regex"),
    }.get(form, {"type": form})  # fmt: skip
    library = {
        "Strip": normalizers.Strip(), "Regex": normalizers.Replace(Regex(r"\s"), "-"),
    }.get(form) or getattr(normalizers, form)()  # fmt: skip
    ours = read_step(step)
    codes = [*range(0x7F0), *range(0x900, 0x9F0), *range(0x1D00, 0x1DF0), *range(0x1E00, 0x2E40),
             *range(0x3000, 0x3100), *range(0xF900, 0x10000), *range(0x1F100, 0x1F200)]  # fmt: skip
    wrong = [code for code in codes if library.normalize_str(chr(code)) != ours(chr(code))]
    assert not wrong, list(map(hex, wrong))


PATTERNS = (
    " {2,}", r"\s+", r"[\n\t]+", "a-z", "[^a-z0-9]", "x{2}y", r"\.\.", "`", "ab?c", "[é東]",
    r"[^\s]b",
)  # fmt: skip
OTHER_PATTERNS = (
    "(a)", "a|b", ".", "^a", "a$", "a*", "", "a+b+", "a+?", "a++", r"\w", r"\d", r"\p{L}", "[[a]]",
    "[a&&b]", "a{,3}", "[]", r"\1", "(?=a)", "a{2}{3}", "é" * 300, "[z-a]", "a{9999}", r"\x41", "{",
    "a{0,9}" * 12 + "b", "a?" * 24 + "a" * 24,
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_is_expressed(pattern: str) -> None:
    library = normalizers.Replace(Regex(pattern), "<$1\\1>")
    ours = read_step(replace(pattern, "<$1\\1>", "Regex"))
    draw = random.Random(2)
    for _ in range(1000):
        text = "".join(draw.choices("aabcxy z09.`\n\t\r-\u0085\u3000\x1cé東", k=12))
        assert ours(text) == library.normalize_str(text), ascii(text)


@pytest.mark.parametrize("pattern", OTHER_PATTERNS)
def test_a_pattern_that_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="'Replace' of the pattern"):
        read_step(replace(pattern, "", "Regex"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "Expecting"), ("{}", "not a list"), ("[" * 60_000, "deep"), ('["x"]', "'x'"),
        ('[{"type": "BertNormalizer"}]', "'BertNormalizer'"), ("[null]", "None"),
        (json.dumps([NFC] * 65), "not a list"), (json.dumps([replace("", "a")]), "'Replace'"),
        (json.dumps([STRIP | {"strip_left": 1}]), "'Strip'"),
        (json.dumps([{"type": "Prepend", "prepend": ""}]), "'Prepend'"),
    ],
)  # fmt: skip
def test_steps_that_are_refused(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        read_steps(text)


def test_steps_that_never_end_growing() -> None:
    steps = read_steps(json.dumps([replace("a", "a" * 256)] * 64))
    with pytest.raises(ValueError, match="a short text"):
        apply(steps, "aaaa")


IDS, FLAG_KEY = text_rules.ADDED_IDS_KEY, text_rules.ADDED_FLAGS_KEY
BAD_KEYS: dict[str, tuple[dict[str, Key | None], str]] = {
    "ids without flags": ({FLAG_KEY: None}, FLAG_KEY),
    "flags without ids": ({IDS: None}, "added_"),
    "fewer flags": ({FLAG_KEY: Key(5, [1], True)}, "1 values"),
    "an id that is no token": (
        {IDS: Key(5, [1 << 20], True), FLAG_KEY: Key(5, [1], True)}, "a token above"),
    "a negative id": ({IDS: Key(5, [-1], True), FLAG_KEY: Key(5, [1], True)}, "a token above"),
    "ids that are text": ({IDS: Key(STRING, "x")}, "not an array"),
    "cuts that are a number": ({text_rules.CUTS_KEY: Key(4, 1)}, "not a text"),
    "an unknown cut": ({text_rules.CUTS_KEY: Key(STRING, '[{"type": "X"}]')}, "'X'"),
    "too many cuts": (
        {text_rules.CUTS_KEY: Key(STRING, "[" + ", ".join(["0"] * 17) + "]")}, "up to 16 cuts",
    ),
    "steps that are a number": ({text_rules.NORMALIZERS_KEY: Key(4, 1)}, "not a text"),
    "steps that are not known": (
        {text_rules.NORMALIZERS_KEY: Key(STRING, '[{"type": "X"}]')}, "'X'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_KEYS)
def test_keys_that_are_refused(converted: Converter, tmp_path: Path, name: str) -> None:
    changes, part = BAD_KEYS[name]
    parts = GgufParts.read(converted())
    for key, value in changes.items():
        if value is None:
            del parts.keys[key]
        else:
            parts.keys[key] = value
    with pytest.raises(GgufError, match="bad GGUF header") as caught:
        LlamaModel(parts.write(tmp_path / "bad.gguf"))
    assert part in str(caught.value)


def test_what_grows_too_far_is_one_error(converted: Converter, tmp_path: Path) -> None:
    parts = GgufParts.read(converted())
    steps = json.dumps([replace("a", "a" * 256)] * 8)
    parts.keys[text_rules.NORMALIZERS_KEY] = Key(STRING, steps)
    with (
        LlamaModel(parts.write(tmp_path / "grows.gguf")) as model,
        pytest.raises(ModelLoadError, match="a short text"),
    ):
        model.vocab.tokenize("aaaa")


def test_a_file_without_the_keys_is_read_as_before(converted: Converter, tmp_path: Path) -> None:
    parts = GgufParts.read(converted())
    with LlamaModel(converted()) as model:
        want = model.vocab.tokenize("a  b<|endoftext|>e\u0301")
    for key in (IDS, FLAG_KEY):
        del parts.keys[key]
    with LlamaModel(parts.write(tmp_path / "older.gguf")) as model:
        assert model.vocab.tokenize("a  b<|endoftext|>e\u0301") == want


def test_a_text_stored_as_a_special_token_is_text(tmp_path: Path) -> None:
    folder = changed(tmp_path / "checkpoint", FLAGGED, None, None)
    vocabulary = read(folder)
    assert any("stored as special tokens" in note for note in vocabulary.notes)
    assert any("lstrip" in note for note in vocabulary.notes)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        vocab = model.vocab
        (number,) = vocab.tokenize("<w>", parse_special=False)
        assert vocab.piece(number) == b"<w>"
        assert "<w>" not in vocab.special_texts()
        assert "<mask>" in vocab.special_texts()
        pieces, no_text = vocab.plain_pieces()
        assert pieces[number] == b"<w>"
        assert number not in no_text
        (mask,) = vocab.tokenize(" <mask>")
        assert mask not in vocab.tokenize(" <mask>", parse_special=False)
        assert mask in no_text


def test_the_fewest_tokens_of_what_is_shortened(tmp_path: Path) -> None:
    for name in ("flags", "flags and a space"):
        folder = changed(tmp_path / name, *FEATURES[name])
        with LlamaModel(write_gguf(read(folder), tmp_path / "v.gguf"), vocab_only=True) as model:
            text = "<both>" + " " * 100_000
            assert len(model.vocab.tokenize(text)) == 1
            assert model.vocab.fewest_tokens(text, 4) == 0


def test_a_token_that_is_normalized_to_nothing(tmp_path: Path) -> None:
    folder = changed(tmp_path / "c", [token("xy", "normalized")], replace("xy", ""), None)
    with pytest.raises(UnsupportedError, match="leaves nothing of the added token 'xy'"):
        read(folder)


Change = Callable[[Json], Any]
REFUSED: dict[str, tuple[Change, str]] = {
    "BERT's": (lambda d: d.update(normalizer={"type": "BertNormalizer"}), "'BertNormalizer'"),
    "bytes": (lambda d: d.update(normalizer=seq(NFC, {"type": "ByteLevel"})), "'ByteLevel'"),
    "not a list": (lambda d: d.update(normalizer={"type": "Sequence"}), "'Sequence'"),
    "very many": (lambda d: d.update(normalizer=seq(*[NFC] * 65)), "more than 64 steps"),
    "a pattern": (lambda d: d.update(normalizer=replace("a|b", "", "Regex")), "a|b"),
    "digits and a space": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, SPACED]}),
        "Digits + ByteLevel with add_prefix_space"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    change, part = REFUSED[name]
    folder = copy_checkpoint(PARALLEL, tmp_path / "checkpoint")
    edit_json(folder / "tokenizer.json", lambda data: change(data) and None)
    with pytest.raises(UnsupportedError) as caught:
        read(folder)
    assert part in str(caught.value)
