"""Special ids, templates around text and chat templates arrive where llama.cpp looks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import read, write_gguf

from infer_os.convert.errors import FileFormatError, UnsupportedError
from infer_os.convert.special import with_end
from infer_os.convert.vocabulary import GgufVocabulary, TokenType
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "<cls>", "<mask>", "<a>", "<b>", "<c>", "<d>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny byte-level vocabulary whose first tokens are WORDS, all of them special."""
    data = {
        "added_tokens": [{"id": i, "content": w, "special": True} for i, w in enumerate(WORDS)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"type": "BPE", "vocab": {"x": 11, "y": 12, "xy": 13}, "merges": ["x y"]},
    }
    write(tmp_path, "tokenizer", data)
    return tmp_path


def write(folder: Path, name: str, value: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value))


def ends(vocabulary: GgufVocabulary, folder: Path) -> list[str]:
    """What ends a generation, to llama.cpp."""
    with LlamaModel(write_gguf(vocabulary, folder / "m.gguf"), vocab_only=True) as model:
        found = [i for i in range(model.vocab.n_tokens) if model.vocab.is_end(i)]
    return [vocabulary.tokens[i] for i in found]


def test_every_name_has_its_key(folder: Path) -> None:
    names = ("unk", "bos", "eos", "pad", "sep", "cls", "mask")
    write(folder, "config", {f"{name}_token_id": i for i, name in enumerate(names)})
    metadata = read_gguf_header(write_gguf(read(folder), folder / "m.gguf")).metadata
    keys = ("unknown", "bos", "eos", "padding", "seperator", "cls", "mask")
    assert [metadata[f"tokenizer.ggml.{key}_token_id"] for key in keys] == list(range(7))


def test_what_generation_uses_goes_first(folder: Path) -> None:
    write(folder, "config", {"eos_token_id": 7, "pad_token_id": 3})
    write(folder, "generation_config", {"eos_token_id": 8})
    write(folder, "tokenizer_config", {"eos_token": "<c>", "bos_token": {"content": "<a>"}})
    write(folder, "special_tokens_map", {"bos_token": "<b>", "unk_token": "<unk>"})
    assert read(folder).special == {"eos": 8, "pad": 3, "bos": 7, "unk": 0}


@pytest.mark.parametrize("junk", [None, -1, 10**9, "2", 1.0, True, [], [None], {}])
def test_ids_that_are_none(folder: Path, junk: Any) -> None:
    write(folder, "generation_config", {"eos_token_id": junk})
    write(folder, "config", {"eos_token_id": 2})
    assert read(folder).special == {"eos": 2}


def test_several_ends(folder: Path) -> None:
    write(folder, "generation_config", {"eos_token_id": [7, 8, 9]})
    vocabulary = read(folder)
    assert vocabulary.special == {"eos": 7, "eot": 8, "eom": 9}
    assert vocabulary.notes[1:] == ()  # the first is about missing bytes
    assert ends(vocabulary, folder) == ["</s>", "<a>", "<b>", "<c>"]


def test_more_ends_than_keys_are_noted(folder: Path) -> None:
    write(folder, "config", {"eos_token_id": [7, 8, 7, 9, 10]})
    vocabulary = read(folder)
    assert vocabulary.special == {"eos": 7, "eot": 8, "eom": 9}
    assert any("'<d>'" in note for note in vocabulary.notes)


@pytest.mark.parametrize(("text", "model"), [("### End", "Dolly"), ("<|USER|>", "StableLM")])
def test_ends_of_turn_that_no_config_names(folder: Path, text: str, model: str) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append({"id": 14, "content": text, "special": True})
    write(folder, "tokenizer", data)
    write(folder, "config", {"eos_token_id": 7})
    vocabulary = read(folder)
    assert vocabulary.special == {"eos": 7, "eot": 14}
    assert any(model in note for note in vocabulary.notes)
    assert text in ends(vocabulary, folder)


def _template(*pieces: str | None) -> dict[str, Any]:
    single = [
        {"SpecialToken": {"id": p}} if p else {"Sequence": {"id": "A"}} for p in pieces
    ]  # None is the text
    return {"type": "TemplateProcessing", "single": single}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, [11]),
        ({"type": "ByteLevel"}, [11]),
        (_template(None), [11]),
        (_template("<s>", None), [1, 11]),
        (_template(None, "</s>"), [11, 2]),
        (_template("<s>", None, "</s>"), [1, 11, 2]),
        ({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, [1, 11, 2]),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, _template("<a>", None)]},
         [7, 11]),
    ],
)  # fmt: skip
def test_tokens_around_a_text(folder: Path, processor: Any, expected: list[int]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    write(folder, "tokenizer", {**data, "post_processor": processor})
    with LlamaModel(write_gguf(read(folder), folder / "m.gguf"), vocab_only=True) as model:
        assert model.vocab.tokenize("x") == expected
        assert model.vocab.tokenize("x", add_special=False) == [11]


@pytest.mark.parametrize(
    ("processor", "part"),
    [
        (_template("<nobody>", None), "<nobody>"),
        (_template(None, "<a>"), "ends a text"),
        (_template("<s>", "<a>", None), "template"),
        ({"type": "Sequence", "processors": [_template("<s>", None), _template("<a>", None)]},
         "several templates"),
        ({"type": "BertProcessing"}, "BertProcessing"),
    ],
)  # fmt: skip
def test_a_template_that_is_refused(folder: Path, processor: Any, part: str) -> None:
    write(folder, "config", {"eos_token_id": 2})
    data = json.loads((folder / "tokenizer.json").read_text())
    write(folder, "tokenizer", {**data, "post_processor": processor})
    with pytest.raises(UnsupportedError, match=part):
        read(folder)


# ---- chat templates


def test_named_chat_templates(folder: Path) -> None:
    templates = [
        {"name": "tool", "template": "T"}, {"name": "default", "template": "D"},
        {"name": "rag", "template": "R"},
    ]  # fmt: skip
    write(folder, "tokenizer_config", {"chat_template": templates})
    path = write_gguf(read(folder), folder / "m.gguf")
    metadata = read_gguf_header(path).metadata
    assert list(metadata["tokenizer.chat_templates"]) == ["tool", "rag"]
    assert metadata["tokenizer.chat_template.tool"] == "T"
    assert metadata["tokenizer.chat_template.rag"] == "R"
    with LlamaModel(path, vocab_only=True) as model:
        assert model.chat_template == "D"


def test_the_templates_own_file_goes_first(folder: Path) -> None:
    write(folder, "tokenizer_config", {"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("new")
    assert read(folder).chat_template == "new"


@pytest.mark.parametrize(
    "value",
    [[{"name": "x"}], [{"template": "x"}], [7], [{"name": 1, "template": "x"}], "x" * (1 << 21)],
    ids=["no template", "no name", "number", "number for a name", "long"],
)
def test_a_bad_chat_template(folder: Path, value: Any) -> None:
    write(folder, "tokenizer_config", {"chat_template": value})
    with pytest.raises(FileFormatError, match=r"chat.template"):
        read(folder)


@pytest.mark.parametrize("data", [b"\xff", b"x" * ((1 << 20) + 1)], ids=["not utf-8", "long"])
def test_a_bad_template_file(folder: Path, data: bytes) -> None:
    (folder / "chat_template.jinja").write_bytes(data)
    with pytest.raises(FileFormatError, match=r"chat_template.jinja"):
        read(folder)


def test_an_end_that_is_llama_cpps_own_default_ends_nothing(folder: Path) -> None:
    assert ends(read(folder), folder) == ["</s>"]


@pytest.mark.parametrize(
    ("kinds", "end"),
    [
        ("CCNN", 0), ("NCCN", 1), ("NNUU", 3), ("NDNU", 3), ("NDNN", None), ("NNNC", 3),
    ],
)  # fmt: skip
def test_an_end_where_none_is_named(kinds: str, end: int | None) -> None:
    """A special token before padding; never text, and a run of spaces (user-defined) is text."""
    letters = {
        "C": TokenType.CONTROL, "N": TokenType.NORMAL, "U": TokenType.UNUSED,
        "D": TokenType.USER_DEFINED,
    }  # fmt: skip
    vocabulary = GgufVocabulary("gpt-2", ("a", "b", "c", "d"), tuple(letters[k] for k in kinds))
    found = with_end(vocabulary)
    assert found.special == ({} if end is None else {"eos": end})
    assert "no end token named" in found.notes[0]


def test_the_usual_end_goes_first() -> None:
    kinds = (TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL)
    assert with_end(GgufVocabulary("gpt-2", ("<s>", "</s>", "x"), kinds)).special == {"eos": 1}
    named = GgufVocabulary("gpt-2", ("<s>", "</s>", "x"), kinds, special={"eos": 2})
    assert with_end(named) is named


@pytest.mark.parametrize("junk", [-1, 10**9, "2", True, 1.0, "x" * 1000])
def test_an_id_that_is_none_is_noted(folder: Path, junk: Any) -> None:
    write(folder, "config", {"eos_token_id": 2, "pad_token_id": junk})
    notes = [note for note in read(folder).notes if "pad_token_id" in note]
    assert len(notes) == 1
    assert "config.json: pad_token_id" in notes[0]
    assert "ignored" in notes[0]
    assert len(notes[0]) < 200
