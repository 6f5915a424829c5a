"""Sizes that contradict each other, which llama.cpp would assert on, ending the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REFERENCES, Converter

from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.graph_check import check_graph
from infer_os.native.logs import forget_complaints, last_complaint
from infer_os.native.model import Model


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_every_family_passes(folder: Path, converted: Converter) -> None:
    check_graph(read_gguf_header(converted(folder)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope.dimension_count", 17, "17 rotary dimensions"),
        ("rope.dimension_count", 128, "128 rotary dimensions"),
        ("rope.dimension_count", 100_000, "rotary dimensions"),
        ("attention.key_length", 16, "keys of 16"),
        ("attention.value_length", 64, "values of 64"),
        ("attention.head_count", 3, "3 heads"),
        ("attention.head_count", 0, "attention.head_count"),
        ("attention.head_count_kv", 4, "for 4 key heads"),
        ("embedding_length", "many", "embedding_length"),
    ],
)
def test_contradictions_are_refused(
    key: str, value: object, words: str, converted: Converter
) -> None:
    header = read_gguf_header(converted())
    bad = replace(header, metadata={**header.metadata, f"{header.architecture}.{key}": value})
    with pytest.raises(GgufError, match=words) as caught:
        check_graph(bad)
    assert str(header.path) in str(caught.value)


def test_an_alignment_that_kernels_do_not_take(converted: Converter) -> None:
    with pytest.raises(GgufError, match="alignment 8"):
        check_graph(replace(read_gguf_header(converted()), alignment=8))


def test_a_model_with_wrong_sizes_does_not_reach_llama_cpp(
    converted: Converter, tmp_path: Path
) -> None:
    data = converted().read_bytes()
    key = b"gptneox.rope.dimension_count"
    at = data.index(key) + len(key) + 4
    path = tmp_path / "bad.gguf"
    path.write_bytes(data[:at] + (17).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(GgufError, match="17 rotary"):
        Model(path)


def test_the_first_complaint_says_why(converted: Converter, tmp_path: Path) -> None:
    data = converted().read_bytes()
    path = tmp_path / "renamed.gguf"
    path.write_bytes(data.replace(b"blk.0.ffn_up.bias", b"blk.0.ffn_ap.bias"))
    forget_complaints()
    with pytest.raises(Exception, match=r"ffn_up\.bias"):
        Model(path)
    assert "ffn_up.bias" in last_complaint()


def test_an_unknown_normalizer_is_refused(converted: Converter, tmp_path: Path) -> None:
    data = converted().read_bytes()
    key = b"inferos.tokenizer.normalizer"
    at = data.index(b"NFC", data.index(key))
    path = tmp_path / "bad.gguf"
    path.write_bytes(data[:at] + b"XYZ" + data[at + 3 :])
    with pytest.raises(GgufError, match="'XYZ'"):
        Model(path)
