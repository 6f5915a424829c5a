"""A tokenizer.json of type Unigram: the tokens of the ``tokenizers`` library, through llama.cpp."""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TESTS
from tokenizer_folders import read, write_gguf
from tokenizers import Tokenizer

from infer_os.convert.errors import ConvertError, FileFormatError, UnsupportedError
from infer_os.convert.sentencepiece_file import read_sentencepiece
from infer_os.convert.vocabulary import GgufVocabulary
from infer_os.native.model import LlamaModel

WORDS = TESTS / "reference" / "tokenizers" / "words"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model of words, to change."""
    return Path(shutil.copytree(WORDS, tmp_path / "words"))


def rows() -> list[dict[str, Any]]:
    """The stored texts."""
    value: list[dict[str, Any]] = json.loads((WORDS / "expected.json").read_text())
    return value


def pieces_of(vocabulary: GgufVocabulary, text: str, target: Path) -> list[str]:
    """The texts of a text's tokens."""
    with LlamaModel(write_gguf(vocabulary, target), vocab_only=True) as model:
        return [vocabulary.tokens[i] for i in model.vocab.tokenize(text)]


def unigram_json(**changes: Any) -> dict[str, Any]:
    """The words model as transformers converts it."""
    model = read_sentencepiece(WORDS / "spiece.model")
    charsmap = base64.b64encode(model.charsmap).decode()
    no_flags = {"lstrip": False, "rstrip": False, "single_word": False}
    marks = ("<s>", "</s>", "<unk>", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    return {
        "added_tokens": [
            {"id": i, "content": p.text, "special": True, "normalized": False, **no_flags}
            for i, p in enumerate(model.pieces)
            if p.text in marks
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": charsmap},
                {"type": "Strip", "strip_left": False, "strip_right": True},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        },
        "model": {
            "type": "Unigram", "unk_id": 0, "byte_fallback": False,
            "vocab": [[p.text, p.score] for p in model.pieces],
        },
        "version": "1.0", "truncation": None, "padding": None, "decoder": None,
        **changes,
    }  # fmt: skip


def only_json(folder: Path, data: dict[str, Any]) -> Path:
    (folder / "spiece.model").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("shape", ["strip", "split"])
def test_tokenizer_json_against_the_tokenizers_library(
    folder: Path, tmp_path: Path, shape: str
) -> None:
    data = unigram_json()
    if shape == "split":
        steps = [{"type": "WhitespaceSplit"}, data["pre_tokenizer"]]
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        del data["normalizer"]["normalizers"][1:]
    oracle = Tokenizer.from_str(json.dumps(data))
    vocabulary = read(only_json(folder, data))
    assert not vocabulary.add_eos
    assert any("end token" in note for note in vocabulary.notes)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        differing = set()
        for row in rows():
            # the settings say lower case, which this file's normalizer does not
            text = row["text"].lower()
            if model.vocab.tokenize(text) != oracle.encode(text, add_special_tokens=False).ids:
                differing.add(text)
    # ours are sentencepiece's own here: the tokenizers library normalizes by grapheme, strips every
    # kind of white space and takes the sign for a space for a space
    assert differing == {"か\u3099き\u3099", "\u2028\u2029\u0085", "▁", "▁▁ a"}


FEATURES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "overlapping": ([{"content": "zq"}, {"content": "qxk"}, {"content": "<b><c"}], []),
    "flags": (
        [{"content": "<l>", "lstrip": True}, {"content": "<r>", "rstrip": True},
         {"content": "<w>", "single_word": True},
         {"content": "<m>", "special": True}], []),
    "steps": (
        [{"content": "<x>"}, {"content": "Zq", "normalized": True, "lstrip": True},
         {"content": "zQ"}],
        [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
         {"type": "NFKD"},
         {"type": "StripAccents"}, {"type": "Lowercase"}]),
}  # fmt: skip


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_added_tokens_and_steps(
    folder: Path, tmp_path: Path, name: str, parse_special: bool
) -> None:
    added, steps = FEATURES[name]
    data = unigram_json()
    for key in ("special", "normalized", "lstrip", "rstrip", "single_word"):
        added = [{key: False, **entry} for entry in added]
    first = len(data["model"]["vocab"])
    data["added_tokens"] += [{"id": first + i, **entry} for i, entry in enumerate(added)]
    data["normalizer"]["normalizers"] = steps + data["normalizer"]["normalizers"]
    only_json(folder, data)
    # the settings lower-case what this file's normalizer must not
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    oracle = Tokenizer.from_str(json.dumps(data))
    oracle.encode_special_tokens = not parse_special
    draw = random.Random(4)
    words = [*(entry["content"] for entry in added), "it ", " was", "Zqxk", "<b>", "``", "é"]
    words += ["A", "x", " ", "a ", "z", "q"]
    # the library's model makes this token of its letters, which a message must not
    words += ["</s>"] if parse_special else []
    with LlamaModel(write_gguf(read(folder), tmp_path / "m.gguf"), vocab_only=True) as model:
        wrong = []
        for _ in range(2000):
            # a space at an end is cut in another way, which a note says; runs of spaces are
            # made one after tokens are found, not before
            text = " ".join("".join(draw.choices(words, k=draw.randint(1, 8))).split())
            ids = oracle.encode(text, add_special_tokens=False).ids
            if model.vocab.tokenize(text, parse_special=parse_special) != ids:
                wrong.append(text)
    assert not wrong, f"{len(wrong)} differ, first {min(wrong, key=len)!r}"


def test_the_model_file_goes_before_its_own_json(folder: Path) -> None:
    expected = read(folder)
    data = unigram_json()
    data["model"]["vocab"] = data["model"]["vocab"][:50]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert read(folder) == expected


def test_bos_of_a_template(folder: Path, tmp_path: Path) -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
    }
    vocabulary = read(only_json(folder, unigram_json(post_processor=processor)))
    assert pieces_of(vocabulary, "it", tmp_path / "m.gguf")[0] == "<s>"


def test_byte_fallback_of_a_json(folder: Path, tmp_path: Path) -> None:
    data = unigram_json()
    data["model"]["byte_fallback"] = True
    data["model"]["vocab"] += [[f"<0x{i:02X}>", -50.0] for i in range(256)]
    vocabulary = read(only_json(folder, data))
    emoji = [f"<0x{byte:02X}>" for byte in "😀".encode()]
    assert pieces_of(vocabulary, "😀", tmp_path / "m.gguf") == ["▁", *emoji]


def _meta(**changes: Any) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", **changes}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"normalizer": None}, "gets one more"),
        ({"pre_tokenizer": _meta(prepend_scheme="first")}, "after a special token"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}},
         "at the end of a text"),
    ],
)  # fmt: skip
def test_small_differences_are_noted(folder: Path, changes: Any, part: str) -> None:
    notes = read(only_json(folder, unigram_json(**changes))).notes
    assert any(part in note for note in notes)


def test_pieces_of_several_words_are_noted(folder: Path) -> None:
    data = unigram_json()
    data["model"]["vocab"].append(["▁it▁was", -5.0])
    assert any("several words" in note for note in read(only_json(folder, data)).notes)


JsonChange = Callable[[dict[str, Any]], Any]
BAD_JSON: dict[str, tuple[JsonChange, type[ConvertError], str]] = {
    "no unknown": (lambda d: d["model"].update(unk_id=None), FileFormatError, "unk_id is None"),
    "a pair of one": (lambda d: d["model"]["vocab"].append(["x"]), FileFormatError, "['x']"),
    "a score that is text": (
        lambda d: d["model"]["vocab"].append(["x", "y"]), FileFormatError, "['x', 'y']"),
    "half a surrogate pair": (
        lambda d: d["model"]["vocab"].append(["\ud800", -1.0]), FileFormatError, "surrogates"),
    "added tokens of text": (lambda d: d.update(added_tokens="x"), FileFormatError, "added_tokens"),
    "Lowercase after the table": (
        lambda d: d["normalizer"]["normalizers"].append({"type": "Lowercase"}), UnsupportedError,
        "'Lowercase' after another one"),
    "another Replace": (
        lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "a|b"},
                                       "content": "b"}), UnsupportedError, "'Replace'"),
    "a table that is no base64": (
        lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}),
        FileFormatError, "precompiled_charsmap"),
    "normalizers that are none": (
        lambda d: d.update(normalizer={"type": "Sequence"}), UnsupportedError,
        "'Sequence'"),
    "no pre-tokenizer": (lambda d: d.update(pre_tokenizer=None), UnsupportedError, "none"),
    "ByteLevel": (
        lambda d: d.update(pre_tokenizer={"type": "ByteLevel"}), UnsupportedError, "ByteLevel"),
    "another sign": (
        lambda d: d["pre_tokenizer"].update(replacement="_"), UnsupportedError, "Metaspace"),
    "another scheme": (
        lambda d: d["pre_tokenizer"].update(prepend_scheme="x"), UnsupportedError, "'x'"),
    "no space before": (
        lambda d: d["pre_tokenizer"].update(prepend_scheme="never"), UnsupportedError,
        "without add_dummy_prefix"),
    "another post-processor": (
        lambda d: d.update(post_processor={"type": "BertProcessing"}), UnsupportedError,
        "BertProcessing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_json_that_is_refused(folder: Path, name: str) -> None:
    change, error, part = BAD_JSON[name]
    data = unigram_json()
    change(data)
    with pytest.raises(error) as caught:
        read(only_json(folder, data))
    assert type(caught.value) is error
    assert part in str(caught.value)


def xglm_json() -> dict[str, Any]:
    """The words model as transformers converts an XGLM's."""
    data = unigram_json()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    made_up = [f"<madeupword{i}>" for i in range(7)]
    others = data["model"]["vocab"][3:]
    vocab = [*([mark, 0.0] for mark in marks), *others, *([word, 0.0] for word in made_up)]
    ids = {text: i for i, (text, _) in enumerate(vocab)}
    no_flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    data["added_tokens"] = [
        {"id": ids[text], "content": text, "special": True, **no_flags}
        for text in (*marks, *made_up, "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    ]
    precompiled, *_ = data["normalizer"]["normalizers"]
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    data["normalizer"]["normalizers"] = [precompiled, runs]
    data["model"] |= {"vocab": vocab, "unk_id": 3}
    data["post_processor"]["single"].reverse()
    return data


@pytest.mark.parametrize("form", ["tokenizer.json", "sentencepiece.bpe.model"])
def test_an_xglm_against_the_tokenizers_library(folder: Path, tmp_path: Path, form: str) -> None:
    data = xglm_json()
    oracle = Tokenizer.from_str(json.dumps(data))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XGLMTokenizer"}')
    (folder / "config.json").write_text('{"model_type": "xglm"}')
    if form == "tokenizer.json":
        only_json(folder, data)
    else:
        (folder / "spiece.model").rename(folder / form)
    vocabulary = read(folder)
    assert vocabulary.tokens[:5] == ("<s>", "<pad>", "</s>", "<unk>", data["model"]["vocab"][4][0])
    assert len(vocabulary.tokens) == len(data["model"]["vocab"])
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)
    with LlamaModel(write_gguf(vocabulary, tmp_path / "m.gguf"), vocab_only=True) as model:
        # a space at the end of a text, or before a special token, is dropped, which a note says
        texts = {row["text"] for row in rows() if row["text"] == " ".join(row["text"].split())}
        texts |= {"a</s>b", "x<madeupword3> y", "<pad><unk>"}
        wrong = {text for text in texts if model.vocab.tokenize(text) != oracle.encode(text).ids}
    assert wrong == {"か\u3099き\u3099", "▁", "▁▁ a", "[PAD] [CLS]x[SEP] [MASK]"}
