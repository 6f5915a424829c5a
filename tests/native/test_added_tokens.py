"""Added tokens that overlap are found as the ``tokenizers`` library finds them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from helpers import PARALLEL, copy_checkpoint, edit_json
from tokenizer_folders import tokenize_all
from tokenizers import Tokenizer

ADDED = ["zq", "qxk", "\n\n", "\n    ", "=>", "=====", "\t\t", "\t    ", "12", "2345", "aa", "aab"]
SPECIAL = ["<a>", "<a><b", "<b>", "<|x|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX tokenizer with tokens that share their ends."""
    place = copy_checkpoint(PARALLEL, tmp_path_factory.mktemp("overlap") / "checkpoint")
    path = place / "tokenizer.json"
    data = json.loads(path.read_text())
    first = max([*data["model"]["vocab"].values(), *(t["id"] for t in data["added_tokens"])]) + 1
    texts = [text for text in (*ADDED, *SPECIAL) if text not in data["model"]["vocab"]]
    for i, text in enumerate(texts, first):
        entry = {"id": i, "content": text, "special": text in SPECIAL}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        data["added_tokens"].append(entry | flags)
    edit_json(path, lambda _: data)
    return place


@pytest.mark.parametrize("parse_special", [True, False])
def test_random_texts(folder: Path, tmp_path: Path, parse_special: bool) -> None:
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.encode_special_tokens = not parse_special
    draw = random.Random(3)
    words = [*ADDED, *SPECIAL, *"zqxk\n\t =12345ab<>|", "the", " and", "<|endoftext|>", "é"]
    texts = ["".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(3000)]
    got = tokenize_all(folder, texts, tmp_path / "v.gguf", parse_special=parse_special)
    want = [encoding.ids for encoding in oracle.encode_batch(texts)]
    wrong = [text for text, a, b in zip(texts, got, want, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} differ, first {wrong[:3]!r}"
