"""A draft shares the tokens that stand for the same text; another tokenizer is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.speculative.vocabularies import shared_tokens

WORDS = ["a", "b", "c", "d", "e", "f"]


def header(folder: Path, name: str, tokens: list[str], unused: tuple[int, ...] = ()) -> GgufHeader:
    path = folder / f"{name}.gguf"
    writer = GGUFWriter(path, "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([5 if i in unused else 1 for i in range(len(tokens))])
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf_header(path)


def test_equal_vocabularies(tmp_path: Path) -> None:
    target, draft = header(tmp_path, "target", WORDS), header(tmp_path, "draft", WORDS)
    assert shared_tokens(target, draft).all()


def test_a_longer_target(tmp_path: Path) -> None:
    # gpt-j-6B has 143 tokens more than distilgpt2
    extra = [f"<|extratoken_{i}|>" for i in range(9)]
    target, draft = header(tmp_path, "target", WORDS + extra), header(tmp_path, "draft", WORDS)
    assert shared_tokens(target, draft).tolist() == [True] * 6


def test_padding_is_not_shared(tmp_path: Path) -> None:
    # gpt-neox-20b is padded to 50432 rows, pythia to 50304, with other names
    target = header(tmp_path, "target", [*WORDS, "[PAD6]", "[PAD7]", "x"], (6, 7))
    draft = header(tmp_path, "draft", [*WORDS, "pad six", "real"], (6,))
    assert shared_tokens(target, draft).tolist() == [True] * 6 + [False, False]


def test_a_longer_draft(tmp_path: Path) -> None:
    target, draft = header(tmp_path, "target", WORDS[:4]), header(tmp_path, "draft", WORDS)
    assert shared_tokens(target, draft).tolist() == [True] * 4 + [False] * 2


def test_another_text_names_the_token(tmp_path: Path) -> None:
    target, draft = header(tmp_path, "target", WORDS), header(tmp_path, "draft", list("abXdef"))
    with pytest.raises(SettingsError, match=r"--draft .*draft.gguf.*token 2 is 'X' there and 'c'"):
        shared_tokens(target, draft)


def test_nothing_in_common(tmp_path: Path) -> None:
    target = header(tmp_path, "target", WORDS, tuple(range(5)))
    with pytest.raises(SettingsError, match="shares only 1 tokens"):
        shared_tokens(target, header(tmp_path, "draft", WORDS))
