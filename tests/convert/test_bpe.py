"""Byte-level BPE of every form and family gives the tokens of the ``tokenizers`` library."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import read, write_gguf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from infer_os.convert.errors import ConvertError, FileFormatError, SourceError, UnsupportedError
from infer_os.convert.vocabulary import TokenType
from infer_os.native.model import LlamaModel

END = "<|endoftext|>"
CONTROL, USER_DEFINED, NORMAL = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL

BLOOM_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CORPUS = (
    """The quick brown fox doesn't mind; it's 12345 steps (or 678) from [here] to {there}!
    def f(x):\n        return x ** 2  # square\n\n\n東京は日本の首都です。 Où est la bibliothèque ?
Ein Jäger aus Kurpfalz... "We'll see," they've said | a, b. c! d? हिन्दी। عربي، نص۔ 中文，标点。
"""
    * 3
)

TEXTS = [
    "", " ", "a", "don't you're WE'LL 's", "  two   three    four", "\n\n \n\t x", "x  \n", "end  ",
    "[a] (b) {c} |d| [[e]] ((f)) a|b a[b a]b a(b a)b", " [x] (y) |z|", ".,!?…。，、।۔،",
    " .a ,b !c",
    "a.b,c!d?e…f。g，h、i।j۔k،l", "東京。大阪，京都、",
    "a\u00a0b\u3000c\u2028d\u0085e\u180ef\u001cg",
    "1,000 ١٢٣ ² ½ Ⅻ 12ab34", "e\u0301 \u0301x", "😀👨‍👩‍👧", "\x00\x01\x7f",
    "\ufeff\u200b", "a" * 500,
    END, f"a{END}b", f" {END} ", f"{END}{END}", "<|endoftext |>", "\U0010ffff\U000f0000",
]  # fmt: skip


def random_texts(marks: list[str], n: int = 300) -> list[str]:
    """Texts of letters that split in odd ways, mixed with ``marks``."""
    source = random.Random(5)
    letters = "abz 019 .,!?…。，、।۔،()[]|{}'\"-_  \n\t\r\u00a0\u3000\u2028\u0085é東😀١½\u0301srte"
    texts = []
    for _ in range(n):
        parts = [source.choice(letters) for _ in range(source.randrange(25))]
        parts += [chr(source.randrange(0x20, 0x3000)) for _ in range(source.randrange(4))]
        for _ in range(source.randrange(3) if marks else 0):
            parts.insert(source.randrange(len(parts) + 1), source.choice(marks))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def trained() -> str:
    """A tokenizer.json like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer.to_str()


@pytest.fixture
def tokenizer(trained: str) -> Tokenizer:
    return Tokenizer.from_str(trained)


@pytest.fixture
def pair(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A folder with vocab.json and merges.txt, as DialoGPT has them."""
    folder = tmp_path / "pair"
    folder.mkdir()
    tokenizer.model.save(str(folder))
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def agrees(folder: Path, oracle: Tokenizer, marks: list[str]) -> None:
    """Convert the folder's tokenizer; its tokens and text must be the oracle's."""
    target = write_gguf(read(folder), folder / "m.gguf")
    with LlamaModel(target, vocab_only=True) as model:
        for text in TEXTS + random_texts(marks):
            ids = oracle.encode(text).ids
            assert model.vocab.tokenize(text) == ids, text
            data = model.vocab.detokenize(ids)
            assert data.decode("utf-8", "replace") == oracle.decode(ids), text


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


# ---- vocab.json and merges.txt


@pytest.mark.parametrize("name", ["", "GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer"])
def test_the_older_pair(pair: Path, tokenizer: Tokenizer, name: str) -> None:
    if name:
        write_json(pair / "tokenizer_config.json", {"tokenizer_class": name})
    agrees(pair, tokenizer, [END])
    vocabulary = read(pair)
    assert vocabulary.pre == "gpt-2"
    assert vocabulary.types[vocabulary.tokens.index(END)] is CONTROL
    assert vocabulary.types.count(NORMAL) == len(vocabulary.tokens) - 1


def test_both_forms_give_one_vocabulary(pair: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert read(pair) == read(saved(tokenizer, tmp_path / "json"))


@pytest.mark.parametrize("change", ["no version", "crlf", "no last newline"])
def test_spellings_of_merges(pair: Path, change: str) -> None:
    expected = read(pair).merges
    path = pair / "merges.txt"
    text = path.read_text()
    assert text.startswith("#version")
    if change == "no version":
        path.write_text(text.split("\n", 1)[1])
    elif change == "crlf":
        path.write_bytes(text.replace("\n", "\r\n").encode())
    else:
        path.write_text(text.rstrip("\n"))
    assert read(pair).merges == expected


def test_a_merge_of_number_signs_is_kept(pair: Path) -> None:
    path = pair / "merges.txt"
    path.write_text(path.read_text().replace("\n", "\n# #\n", 1))
    assert read(pair).merges[0] == "# #"
    # at the very start too, in a file without a version
    path.write_text(path.read_text().split("\n", 1)[1])
    assert read(pair).merges[0] == "# #"


def test_gptjs_extra_tokens(pair: Path, tokenizer: Tokenizer) -> None:
    """143 tokens in added_tokens.json that are plain text to Hugging Face."""
    first = tokenizer.get_vocab_size()
    extra = [f"<|extratoken_{i}|>" for i in range(1, 144)]
    write_json(pair / "added_tokens.json", {text: first + i for i, text in enumerate(extra)})
    write_json(pair / "special_tokens_map.json", {"eos_token": END})
    tokenizer.add_tokens(extra)
    agrees(pair, tokenizer, [END, *extra[:3]])
    vocabulary = read(pair)
    assert vocabulary.tokens[first:] == tuple(extra)
    assert set(vocabulary.types[first:]) == {USER_DEFINED}


def test_added_tokens_of_the_settings(pair: Path, tokenizer: Tokenizer) -> None:
    first = tokenizer.get_vocab_size()
    plain, marked = {"content": "<plain>", "special": False}, {"content": "<m>", "special": True}
    decoder = {str(first): plain, str(first + 1): marked}
    write_json(pair / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    # the older file agrees, and knows nothing of "special"
    write_json(pair / "added_tokens.json", {"<plain>": first, "<m>": first + 1})
    tokenizer.add_tokens(["<plain>"])
    tokenizer.add_special_tokens(["<m>"])
    agrees(pair, tokenizer, [END, "<plain>", "<m>"])
    assert read(pair).types[first:] == (USER_DEFINED, CONTROL)


@pytest.mark.parametrize(
    "special",
    [{"pad_token": "<pad>"}, {"additional_special_tokens": [{"content": "<pad>"}]},
     {"extra_special_tokens": {"x": "<pad>"}}],
)  # fmt: skip
def test_special_texts_are_not_shown(pair: Path, tokenizer: Tokenizer, special: Any) -> None:
    first = tokenizer.get_vocab_size()
    write_json(pair / "added_tokens.json", {"<pad>": first})
    write_json(pair / "special_tokens_map.json", special)
    assert read(pair).types[first] is CONTROL


def test_a_special_token_without_an_id_is_noted(pair: Path) -> None:
    write_json(pair / "tokenizer_config.json", {"pad_token": "<nowhere>"})
    assert any("<nowhere>" in note for note in read(pair).notes)


def test_bos_before_each_text(pair: Path, tokenizer: Tokenizer) -> None:
    settings = {"add_bos_token": True, "bos_token": END}
    write_json(pair / "tokenizer_config.json", settings)
    with LlamaModel(write_gguf(read(pair), pair / "m.gguf"), vocab_only=True) as model:
        first = tokenizer.token_to_id(END)
        assert model.vocab.tokenize("hello") == [first, *tokenizer.encode("hello").ids]
        assert model.vocab.tokenize("hello", add_special=False) == tokenizer.encode("hello").ids


def test_tokenizer_json_goes_first(pair: Path, tokenizer: Tokenizer) -> None:
    write_json(pair / "vocab.json", {"a": 0})
    saved(tokenizer, pair)
    agrees(pair, tokenizer, [END])


def _settings(value: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "tokenizer_config.json", value)


PAIRS: dict[str, tuple[Callable[[Path], Any], type[ConvertError], str]] = {
    "another class": (
        _settings({"tokenizer_class": "XLMTokenizer"}), UnsupportedError, "'XLMTokenizer'"),
    "no merges": (lambda f: (f / "merges.txt").unlink(), SourceError, "merges.txt"),
    "merges not text": (
        lambda f: (f / "merges.txt").write_bytes(b"a \xff"), FileFormatError, "merges.txt"),
    "a merge of three": (
        lambda f: (f / "merges.txt").write_text("a b c\n"), FileFormatError, "'a b c'"),
    "a merge of one": (lambda f: (f / "merges.txt").write_text("ab\n"), FileFormatError, "'ab'"),
    "a merge of half": (lambda f: (f / "merges.txt").write_text("ab \n"), FileFormatError, "'ab '"),
    "no merge": (
        lambda f: (f / "merges.txt").write_text("#version: 0.2\n"), UnsupportedError,
        "without any merges"),
    "an empty vocabulary": (
        lambda f: write_json(f / "vocab.json", {}), FileFormatError, "empty"),
    "a text for an id": (
        lambda f: write_json(f / "vocab.json", {"a": "b"}), FileFormatError, "'a'"),
    "an added token with another's id": (
        lambda f: write_json(f / "added_tokens.json", {"<x>": 5}), FileFormatError, "'<x>'"),
    "an added token without an id": (
        lambda f: write_json(f / "added_tokens.json", {"<x>": None}), FileFormatError, "'<x>'"),
    "an empty added token": (
        lambda f: write_json(f / "added_tokens.json", {"": 600}), FileFormatError, "empty"),
    "a decoder that is a list": (
        _settings({"added_tokens_decoder": [1]}), FileFormatError, "added_tokens_decoder"),
    "a decoder with a word for an id": (
        _settings({"added_tokens_decoder": {"x": {"content": "y"}}}), FileFormatError,
        "added_tokens_decoder"),
    "a decoder without text": (
        _settings({"added_tokens_decoder": {"600": {}}}), FileFormatError, "added_tokens"),
    "two tokens of one text": (
        _settings({"added_tokens_decoder": {"600": {"content": "a"}}}), FileFormatError, "'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_that_is_refused(pair: Path, name: str) -> None:
    change, error, part = PAIRS[name]
    change(pair)
    with pytest.raises(error) as caught:
        read(pair)
    assert type(caught.value) is error
    assert part in str(caught.value)


# ---- tokenizer.json, family by family


SPACES = [" " * n for n in range(24, 1, -1)]


def _neox(tokenizer: Tokenizer) -> list[str]:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|padding|>"])
    tokenizer.add_tokens(SPACES)
    return [*SPACES[::5], "<|padding|>", "e\u0301"]


def _dolly(tokenizer: Tokenizer) -> list[str]:
    marks = ["### End", "### Instruction:", "### Response:\n"]
    _neox(tokenizer)
    tokenizer.add_special_tokens(marks)
    return [*marks, "### Response:", "  "]


def _open_assistant(tokenizer: Tokenizer) -> list[str]:
    marks = ["<|prompter|>", "<|assistant|>", "<|system|>", "<|prefix_begin|>"]
    _neox(tokenizer)
    tokenizer.add_special_tokens(marks)
    return marks


def _stablelm(tokenizer: Tokenizer) -> list[str]:
    marks = ["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"]
    _neox(tokenizer)
    tokenizer.add_tokens(marks)
    return marks


def _bloom(tokenizer: Tokenizer) -> list[str]:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return ["<s>", "</s>", "<pad>"]


def _spelled_out(tokenizer: Tokenizer) -> list[str]:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return []


def _digits(tokenizer: Tokenizer) -> list[str]:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return []


_GALACTICA_PATTERN = r"[\(\)\[\]\{\}]|([!\"\#\$%\&'\*\+,\-\./:;<=>\?\\\^_`\|\~])\1*"


def _galactica(tokenizer: Tokenizer) -> list[str]:
    """As Galactica splits: proteins and numbers letter by letter, signs and their repeats."""
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("SPL1T", "removed"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_GALACTICA_PATTERN), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return ["MSPL1TKSPL1T1SPL1T", "SPL1T", "a--b...c((d", "\n\n \n", "x= 1.5 e-3"]


def _roberta(tokenizer: Tokenizer) -> list[str]:
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ids = [(text, tokenizer.token_to_id(text)) for text in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ids, add_prefix_space=False)
    return ["<s>"]


FAMILIES = {
    "gpt2": (lambda tokenizer: [END], "gpt-2"), "neox": (_neox, "gpt-2"),
    "dolly": (_dolly, "gpt-2"), "open-assistant": (_open_assistant, "gpt-2"),
    "stablelm": (_stablelm, "gpt-2"), "bloom": (_bloom, "bloom"),
    "gpt2 spelled out": (_spelled_out, "gpt-2"), "digits": (_digits, "starcoder"),
    "roberta": (_roberta, "gpt-2"), "galactica": (_galactica, "gpt-2"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    change, pre = FAMILIES[name]
    marks = change(tokenizer)
    folder = saved(tokenizer, tmp_path / "json")
    agrees(folder, tokenizer, [*marks, END])
    assert read(folder).pre == pre
    assert read(folder).notes == () or name in ("dolly", "stablelm", "galactica")


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_every_code_point_splits_alike(tmp_path: Path, name: str) -> None:
    """A letter, a digit and a mark, each merged with what follows only if nothing splits them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in printable]
    letter_of = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {letter: i for i, letter in enumerate(letters)}
    merges = [(x, letter_of[lead]) for x in "a1![" for lead in range(0xC2, 0xF5)]
    vocab |= {x + y: len(vocab) + i for i, (x, y) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "bloom":
        _bloom(tokenizer)
    folder = saved(tokenizer, tmp_path / "json")
    # beyond, GPT-2's \p{L} and \p{N} differ in what Unicode 16 added: 4,382 code points
    with LlamaModel(write_gguf(read(folder), folder / "m.gguf"), vocab_only=True) as model:
        codes = [*range(0xA1, 0x1C80), *range(0x1CD0, 0xA7C0), *range(0xF900, 0x10000)]
        for at in range(0, len(codes), 32):
            some = map(chr, codes[at : at + 32])
            text = " ".join(f"a{c} 1{c} !{c} [{c}]" for c in some)
            assert model.vocab.tokenize(text) == tokenizer.encode(text).ids, hex(codes[at])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (pre_tokenizers.Punctuation(), "the pre-tokenizer 'Punctuation' cannot be expressed"),
        (pre_tokenizers.Split(Regex(r"\w+"), "isolated"), "'Split' of {'Regex': "),
        (pre_tokenizers.Split(Regex("(a|b)*c"), "isolated"), "'Split' of"),
        (pre_tokenizers.Split("x", "merged_with_next"), "'Split' of {'String': 'x'}"),
        (pre_tokenizers.Split("x", "isolated", invert=True), "'Split' of {'String': 'x'}"),
    ],
)  # fmt: skip
def test_a_cut_that_cannot_be_expressed_is_named(
    tokenizer: Tokenizer, tmp_path: Path, step: Any, words: str
) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel()])
    folder = saved(tokenizer, tmp_path / "json")
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": False})
    with pytest.raises(UnsupportedError) as caught:
        read(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_types_follow_special(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _dolly(tokenizer)
    vocabulary = read(saved(tokenizer, tmp_path / "json"))
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert {types[space] for space in SPACES} == {USER_DEFINED}
    assert {types[t] for t in (END, "<|padding|>", "### End", "### Response:\n")} == {CONTROL}


def test_the_settings_make_a_token_special(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _stablelm(tokenizer)
    folder = saved(tokenizer, tmp_path / "json")
    settings = {"additional_special_tokens": ["<|SYSTEM|>"]}
    write_json(folder / "tokenizer_config.json", settings)
    vocabulary = read(folder)
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (types["<|SYSTEM|>"], types["<|USER|>"]) == (CONTROL, USER_DEFINED)


def test_tokens_that_only_the_settings_add(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = tokenizer.get_vocab_size()
    folder = saved(tokenizer, tmp_path / "json")
    decoder = {str(first): {"content": "<later>", "special": False}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    tokenizer.add_tokens(["<later>"])
    agrees(folder, tokenizer, ["<later>"])


def test_spaces_beside_special_tokens_are_noted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    notes = read(saved(tokenizer, tmp_path / "json")).notes
    assert len(notes) == 1
    assert "'<mask>'" in notes[0]
    assert "lstrip" in notes[0]


def test_missing_bytes_are_noted(pair: Path) -> None:
    vocab = json.loads((pair / "vocab.json").read_text())
    del vocab["!"]
    write_json(pair / "vocab.json", vocab)
    assert any("1 of the 256 bytes" in note for note in read(pair).notes)


JsonChange = Callable[[dict[str, Any]], Any]
REFUSED: dict[str, tuple[JsonChange, type[ConvertError], str]] = {
    "ignore_merges": (
        lambda d: d["model"].update(ignore_merges=True), UnsupportedError, "ignore_merges"),
    "an added token of another id": (
        lambda d: d["added_tokens"].append({"id": 5, "content": "<x>"}), FileFormatError, "'<x>'"),
    "whole numbers": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": False}, d["pre_tokenizer"]]}),
        UnsupportedError, "Digits + ByteLevel"),
    "no pattern at all": (
        lambda d: d["pre_tokenizer"].update(use_regex=False), UnsupportedError, "ByteLevel"),
    "a split that removes": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Removed"},
            {**d["pre_tokenizer"], "use_regex": False}]}),
        UnsupportedError, "pattern"),
    "RobertaProcessing without tokens": (
        lambda d: d.update(post_processor={"type": "RobertaProcessing"}), FileFormatError,
        "RobertaProcessing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_json_that_is_refused(trained: str, tmp_path: Path, name: str) -> None:
    change, error, part = REFUSED[name]
    data = json.loads(trained)
    change(data)
    write_json(tmp_path / "tokenizer.json", data)
    with pytest.raises(error) as caught:
        read(tmp_path)
    assert type(caught.value) is error
    assert part in str(caught.value)


def test_a_prefix_space_that_the_settings_want(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = saved(tokenizer, tmp_path / "json")
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": True})
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    agrees(folder, tokenizer, [END])
    assert any("add_prefix_space" in note for note in read(folder).notes)
    # and one that they do not want goes, as it does in transformers
    saved(tokenizer, folder)
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": False})
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    agrees(folder, tokenizer, [END])


def test_a_prefix_space_of_the_older_pair(pair: Path, tokenizer: Tokenizer) -> None:
    write_json(pair / "tokenizer_config.json", {"add_prefix_space": True})
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    agrees(pair, tokenizer, [END])


def test_a_prefix_space_before_parts_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _bloom(tokenizer)
    folder = saved(tokenizer, tmp_path / "json")
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": True})
    with pytest.raises(UnsupportedError, match="Split \\+ ByteLevel with add_prefix_space"):
        read(folder)
