"""Sizes that contradict each other, which llama.cpp would assert on, ending the process."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_parts import GgufParts, Key, Tensor
from helpers import REFERENCES, Converter

from infer_os.native import gguf_file, graph_check
from infer_os.native.errors import GgufError, ModelLoadError
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.graph_check import check_graph, read_model_header
from infer_os.native.logs import forget_complaints, last_complaint
from infer_os.native.model import LlamaModel


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_every_family_passes(folder: Path, converted: Converter) -> None:
    check_graph(read_gguf_header(converted(folder)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope.dimension_count", 0, "whole number from 2"),
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


BAD_SETTINGS = [
    ("attention.layer_norm_epsilon", float("nan"), "expected a number from 0"),
    ("attention.layer_norm_epsilon", -1.0, "expected a number from 0"),
    ("attention.layer_norm_epsilon", None, "is missing"),
    ("block_count", 0, "block_count"),
    ("block_count", 513, "expected a whole number from 1 to 512"),
    ("block_count", 3, r"'blk\.2\.attn_norm\.weight' is missing"),
    ("block_count", 1, r"'blk\.1\.attn_norm\.weight', which the graph 'gptneox' of 1 layers"),
    ("feed_forward_length", 128, r"'blk\.0\.ffn_up\.weight' is 64 x 256; expected 64 x 128"),
    ("expert_count", 8, r"'gptneox\.expert_count', which the graph"),
    ("rope.scaling.type", "odd", "expected one of none, linear"),
    ("rope.freq_base", 0.0, "expected a number above 0"),
    ("use_parallel_residual", 1, "expected true or false"),
    ("context_length", 1 << 31, "context_length"),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD_SETTINGS)
def test_settings_that_the_graph_does_not_take(
    key: str, value: object, words: str, converted: Converter
) -> None:
    header = read_gguf_header(converted())
    metadata = {**header.metadata, f"gptneox.{key}": value}
    if value is None:
        del metadata[f"gptneox.{key}"]
    with pytest.raises(GgufError, match=words):
        check_graph(replace(header, metadata=metadata))


def _twice(parts: GgufParts) -> None:
    tokens = parts.keys["tokenizer.ggml.tokens"].value
    tokens[200] = tokens[201]


def _alike_before_zero(parts: GgufParts) -> None:
    tokens = parts.keys["tokenizer.ggml.tokens"].value
    tokens[200] = tokens[201] + "\0x"


def _set(name: str, key: Key) -> Callable[[GgufParts], None]:
    return lambda parts: parts.keys.__setitem__(f"tokenizer.ggml.{name}", key)


def _type(name: str, kind: int) -> Callable[[GgufParts], None]:
    return lambda parts: setattr(parts.tensor(name), "kind", kind)


BAD_FILES: dict[str, tuple[Callable[[GgufParts], None], str]] = {
    "a token twice": (_twice, "the tokens 200 and 201 are both"),
    "alike before a zero": (_alike_before_zero, "the tokens 200 and 201 are both"),
    "no vocabulary": (_set("model", Key(8, "no_vocab")), "these graphs have gpt2, llama, t5"),
    "another's": (_set("model", Key(8, "llama")), "256 of the 256 bytes have no token"),
    "no merges": (_set("merges", Key(4, 1)), "merges' is 1; expected an array of strings"),
    "few types": (_set("token_type", Key(5, [1, 1], True)), "has 2 values for"),
    "another split": (_set("pre", Key(8, "gemma4")), "'gemma4'"),
    "a flag": (_set("add_bos_token", Key(4, 1)), "expected true or false"),
    "a norm in q8_0": (_type("output_norm.weight", 8), "is q8_0; llama.cpp computes with it in"),
    "a norm in f16": (_type("output_norm.weight", 1), "is f16; llama.cpp computes with it in f32"),
    "a bias in bf16": (_type("blk.0.attn_qkv.bias", 30), "is bf16"),
    "a matrix in q8_1": (_type("blk.0.ffn_up.weight", 9), "cannot multiply"),
    "a matrix in i32": (_type("token_embd.weight", 26), "cannot multiply"),
    "an unknown tensor": (lambda p: setattr(p.tensors[0], "name", "x"), "is missing"),
}


@pytest.mark.parametrize(("change", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_llama_cpp_asserts_on(
    change: Callable[[GgufParts], None], words: str, converted: Converter, tmp_path: Path
) -> None:
    parts = GgufParts.read(converted())
    change(parts)
    with pytest.raises(GgufError, match=words):
        LlamaModel(parts.write(tmp_path / "bad.gguf"))


def test_a_begin_that_is_no_token_is_refused(converted: Converter, tmp_path: Path) -> None:
    parts = GgufParts.read(converted())
    _set("add_bos_token", Key(7, True))(parts)
    _set("bos_token_id", Key(4, 1 << 20))(parts)
    with LlamaModel(parts.write(tmp_path / "eleven.gguf")) as model:
        assert model.vocab.tokenize("a")[0] == 11  # llama.cpp's own, where the named is none
    for key in ("tokens", "token_type"):
        del parts.keys[f"tokenizer.ggml.{key}"].value[9:]
    for name in ("token_embd.weight", "output.weight"):
        parts.tensor(name).shape[1] = 9
    with pytest.raises(GgufError, match="bos_token_id' from 0 to 8 is there"):
        LlamaModel(parts.write(tmp_path / "none.gguf"))


def test_files_of_other_converters_are_taken(converted: Converter, tmp_path: Path) -> None:
    """What llama.cpp's converter and quantizer write for these graphs, and older ones did."""
    gptj = next(path for path in REFERENCES if path.name == "gptj")
    parts = GgufParts.read(converted(gptj))
    n_embd = parts.keys["phi2.embedding_length"].value
    split = []
    for tensor in parts.tensors:
        stem, _, kind = tensor.name.rpartition(".")
        if not stem.endswith("attn_qkv"):
            split.append(tensor)
            continue
        size = len(tensor.data) // 3
        for i, letter in enumerate("qkv"):
            name, shape = f"{stem.replace('qkv', letter)}.{kind}", [*tensor.shape[:-1], n_embd]
            data = tensor.data[i * size : (i + 1) * size]
            split.append(Tensor(name, shape, tensor.kind, data))
    parts.tensors = split
    parts.keys["phi2.vocab_size"] = Key(4, 2048)
    parts.keys["quantize.imatrix.file"] = Key(8, "x.imatrix")
    parts.keys["general.tags"] = Key(8, ["phi"], True)
    parts.keys["tokenizer.ggml.fim_pad_token_id"] = Key(4, 1)
    parts.keys["tokenizer.ggml.padding_token_id"] = Key(4, (1 << 32) - 1)
    with LlamaModel(parts.write(tmp_path / "split.gguf")) as model:
        assert model.n_layer
    gpt2 = next(path for path in REFERENCES if path.name == "gpt2")
    parts = GgufParts.read(converted(gpt2))
    embedding = parts.tensor("token_embd.weight")
    parts.tensors.append(replace(embedding, name="output.weight"))
    n_layer = parts.keys["gpt2.block_count"].value
    heads = parts.keys["gpt2.attention.head_count"].value
    parts.keys["gpt2.attention.head_count"] = Key(4, [heads] * n_layer, True)
    with LlamaModel(parts.write(tmp_path / "untied.gguf")) as model:
        assert model.n_layer == n_layer


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
        LlamaModel(path)


def test_the_first_complaint_says_why(converted: Converter, tmp_path: Path) -> None:
    data = converted().read_bytes()
    path = tmp_path / "renamed.gguf"
    path.write_bytes(data.replace(b"gpt-2", b"gpt-9"))
    forget_complaints()
    with pytest.raises(ModelLoadError, match="unknown pre-tokenizer type: 'gpt-9'"):
        LlamaModel(path)
    assert "gpt-9" in last_complaint()


def test_an_unknown_normalizer_is_refused(converted: Converter, tmp_path: Path) -> None:
    data = converted().read_bytes()
    key = b"inferos.tokenizer.normalizer"
    at = data.index(b"NFC", data.index(key))
    path = tmp_path / "bad.gguf"
    path.write_bytes(data[:at] + b"XYZ" + data[at + 3 :])
    with pytest.raises(GgufError, match="'XYZ'"):
        LlamaModel(path)


def test_an_unchanged_file_is_read_once(
    converted: Converter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(converted(REFERENCES[0]), path)
    reads, checks = [], []
    read, check = gguf_file._HeaderReader.read, graph_check.check_graph

    def counted_read(reader: gguf_file._HeaderReader) -> GgufHeader:
        reads.append(path)
        return read(reader)

    def counted_check(header: GgufHeader) -> None:
        checks.append(header.path)
        check(header)

    monkeypatch.setattr(gguf_file._HeaderReader, "read", counted_read)
    monkeypatch.setattr(graph_check, "check_graph", counted_check)
    monkeypatch.setattr(gguf_file, "_SETTLED_NS", 0)
    header = read_model_header(path)
    with LlamaModel(path) as model:
        assert model.header is header
    assert reads == checks == [path]


def test_a_changed_file_is_read_again_even_if_its_time_is_set_back(
    converted: Converter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gguf_file, "_SETTLED_NS", 0)
    path = tmp_path / "model.gguf"
    shutil.copy(converted(REFERENCES[0]), path)
    before = path.stat()
    assert read_model_header(path).file_bytes == before.st_size
    data = bytearray(path.read_bytes())
    at = data.index(b"general.architecture") + len(b"general.architecture") + 4 + 8
    data[at : at + 2] = b"xx"
    time.sleep(0.02)  # the file system's clock has coarse ticks
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read_model_header(path).architecture.startswith("xx")
    path.unlink()
    with pytest.raises(GgufError, match="no such file"):
        read_model_header(path)
