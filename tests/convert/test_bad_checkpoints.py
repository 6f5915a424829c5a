"""Every way a checkpoint can be bad: one clear error, and nothing left behind."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    PARALLEL,
    TESTS,
    copy_checkpoint,
    edit_json,
    read_tensors,
    set_config,
    write_raw_safetensors,
    write_shards,
    write_tensors,
)

from infer_os.convert.errors import (
    ConvertError,
    FileFormatError,
    PlanError,
    SourceError,
    UnsupportedError,
)
from infer_os.convert.origins import CONFIG_KEY
from infer_os.convert.pipeline import convert
from infer_os.convert.plain_file import read_bytes
from infer_os.convert.safetensors_file import SafetensorsFile
from infer_os.convert.settings import ConvertSettings
from infer_os.models.network import ConfigError
from infer_os.native.gguf_file import read_gguf_header

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
QKV = "gpt_neox.layers.1.attention.query_key_value.weight"
HEAD = "embed_out.weight"


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Where to convert to; afterwards nothing may be there."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "model.gguf"
    assert list(folder.iterdir()) == []


def refused(
    folder: Path, output: Path, error: type[Exception], *parts: str, kind: str = "q8_0"
) -> str:
    """Convert, expecting one line that holds all ``parts``."""
    with pytest.raises(error) as caught:
        convert(ConvertSettings(folder, output, kind, threads=2))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# ---- the folder


def test_no_such_folder(tmp_path: Path, output: Path) -> None:
    refused(tmp_path / "nowhere", output, SourceError, "nowhere", "no such folder")


def test_a_file_in_place_of_a_folder(checkpoint: Path, output: Path) -> None:
    refused(checkpoint / "config.json", output, SourceError, "not a folder")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, output: Path) -> None:
    refused(tmp_path, output, SourceError, "not a checkpoint", "config.json")


def test_no_weights(checkpoint: Path, output: Path) -> None:
    for path in checkpoint.glob("*.safetensors*"):
        path.unlink()
    refused(checkpoint, output, SourceError, "no weights", "model.safetensors")


def test_no_tokenizer(checkpoint: Path, output: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    refused(checkpoint, output, SourceError, "no tokenizer", "tokenizer.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"null", b"[" * 100_000, b"9" * 10_000]
)
def test_json_that_is_none(checkpoint: Path, output: Path, name: str, data: bytes) -> None:
    (checkpoint / name).write_bytes(data)
    refused(checkpoint, output, FileFormatError, name)


def test_a_config_that_is_absurdly_large(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "config.json").write_bytes(b" " * (64 << 20) + b"{}")
    refused(checkpoint, output, FileFormatError, "config.json", "larger than")


# ---- config.json


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": [], "model_type": "llama"}, "llama"),
        ({"architectures": ..., "model_type": ...}, "none"),
        ({"architectures": "GPTNeoXForCausalLM", "model_type": 5}, "5"),
        ({"architectures": [["x"]], "model_type": []}, "none"),
    ],
)
def test_an_unsupported_architecture_lists_the_supported(
    checkpoint: Path, output: Path, values: dict[str, Any], found: str
) -> None:
    set_config(checkpoint, **values)
    refused(checkpoint, output, ConfigError, found, "supported are", "GPTNeoXForCausalLM")


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("value", [..., 0, -1, 1.5, "64", True, [64], 1 << 40, 10**30])
def test_a_size_that_is_none(checkpoint: Path, output: Path, key: str, value: Any) -> None:
    set_config(checkpoint, **{key: value})
    refused(checkpoint, output, ConfigError, "config.json", key)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"num_attention_heads": 3}, "3 heads do not divide"),
        ({"rope_parameters": ..., "rotary_pct": 0.01}, "rotary_pct"),
        ({"rope_parameters": ..., "rotary_pct": 0.1}, "even number"),
        ({"rope_parameters": ..., "rotary_pct": 1.5}, "rotary_factor"),
        ({"rope_parameters": ..., "rotary_pct": "all"}, "expected a number"),
        ({"rope_parameters": ..., "rotary_emb_base": float("nan")}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}},
            "beta_fast of yarn is 16",
        ),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps"),
        ({"hidden_act": "swiglu"}, "swiglu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"use_parallel_residual": "yes"}, "use_parallel_residual"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"attention_bias": 0}, "attention_bias"),
    ],
)
def test_a_setting_that_cannot_be(
    checkpoint: Path, output: Path, values: dict[str, Any], part: str
) -> None:
    set_config(checkpoint, **values)
    refused(checkpoint, output, ConfigError, part)


# ---- what stands in place of a file

SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX, FIRST, SECOND)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 11\n"


@pytest.mark.parametrize("name", SMALL)
def test_a_git_lfs_pointer(checkpoint: Path, output: Path, name: str) -> None:
    (checkpoint / name).write_bytes(POINTER)
    refused(checkpoint, output, FileFormatError, name, "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "spiece.model", "chat_template.jinja"]
)
def test_a_git_lfs_pointer_of_another_tokenizer(checkpoint: Path, output: Path, name: str) -> None:
    if name != "chat_template.jinja":
        (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text('{"a": 0}')
    (checkpoint / name).write_bytes(POINTER)
    refused(checkpoint, output, FileFormatError, name, "Git LFS pointer")


@pytest.mark.parametrize("name", SMALL)
def test_a_pipe_in_place_of_a_file(checkpoint: Path, output: Path, name: str) -> None:
    """Which nobody writes into: to open it would wait for ever."""
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    error = SourceError if name in (FIRST, SECOND) else FileFormatError
    refused(checkpoint, output, error, name)


@pytest.mark.parametrize("name", SMALL[:4])
def test_a_byte_order_mark(checkpoint: Path, tmp_path: Path, name: str) -> None:
    path = checkpoint / name
    if not path.exists():
        path.write_text("{}")
    convert(ConvertSettings(checkpoint, tmp_path / "a.gguf", "q8_0"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    convert(ConvertSettings(checkpoint, tmp_path / "b.gguf", "q8_0"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    path.write_bytes(path.read_text("utf-8-sig").encode("utf-16"))
    refused(checkpoint, tmp_path / "c.gguf", FileFormatError, name, "save it as UTF-8")


# ---- networks without a head


def test_a_bare_model(checkpoint: Path, output: Path) -> None:
    tensors = read_tensors(checkpoint)
    edit_json(checkpoint / INDEX, lambda i: i["weight_map"].pop(HEAD))
    tensors.pop(HEAD)
    set_config(checkpoint, architectures=["GPTNeoXModel"])
    for name in (INDEX, FIRST, SECOND):
        (checkpoint / name).unlink()
    for bare in (tensors, {n.removeprefix("gpt_neox."): t for n, t in tensors.items()}):
        write_tensors(checkpoint, bare)
        message = refused(checkpoint, output, PlanError, f"{HEAD}: missing", "GPTNeoXForCausalLM")
        assert "without its head" in message


def test_a_bare_name_with_a_head(checkpoint: Path, tmp_path: Path) -> None:
    set_config(checkpoint, architectures=["GPTNeoXModel"])
    assert convert(ConvertSettings(checkpoint, tmp_path / "m.gguf", "q8_0")).written


def test_a_bare_model_whose_head_is_the_embedding(tmp_path: Path) -> None:
    folder = copy_checkpoint(TESTS / "reference" / "gpt2", tmp_path / "model")
    convert(ConvertSettings(folder, tmp_path / "a.gguf", "q8_0"))
    set_config(folder, architectures=["GPT2Model"])
    tensors = read_tensors(folder)
    tensors.pop("lm_head.weight", None)
    write_tensors(folder, {n.removeprefix("transformer."): t for n, t in tensors.items()})
    convert(ConvertSettings(folder, tmp_path / "b.gguf", "q8_0"))
    headers = [read_gguf_header(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    configs = [json.loads(header.metadata.pop(CONFIG_KEY)) for header in headers]
    assert [config.pop("architectures") for config in configs] == [
        ["GPT2LMHeadModel"],
        ["GPT2Model"],
    ]
    whole, bare = (
        (header.metadata, header.tensors, config, header.path.read_bytes()[header.data_offset :])
        for header, config in zip(headers, configs, strict=True)
    )
    assert whole == bare


# ---- the index and its shards


def test_an_index_that_is_left_over(checkpoint: Path, tmp_path: Path) -> None:
    """transformers reads a whole file first."""
    convert(ConvertSettings(checkpoint, tmp_path / "a.gguf", "q8_0"))
    tensors = read_tensors(checkpoint)
    index = (checkpoint / INDEX).read_bytes()
    write_tensors(checkpoint, tensors)
    (checkpoint / INDEX).write_bytes(index)
    for name in (FIRST, SECOND):
        (checkpoint / name).unlink(missing_ok=True)
    report = convert(ConvertSettings(checkpoint, tmp_path / "b.gguf", "q8_0"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert [n for n in report.notes if n.startswith("weights: model.safetensors is read")]


@pytest.mark.parametrize("lost", [[FIRST], [SECOND], [FIRST, SECOND]])
def test_missing_shards(checkpoint: Path, output: Path, lost: list[str]) -> None:
    for name in lost:
        (checkpoint / name).unlink()
    refused(checkpoint, output, SourceError, f"{len(lost)} of 2 shards are missing", *lost)


def test_a_shard_that_is_a_folder(checkpoint: Path, output: Path) -> None:
    (checkpoint / FIRST).unlink()
    (checkpoint / FIRST).mkdir()
    refused(checkpoint, output, SourceError, FIRST)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "",
        ".",
        "..",
        5,
        None,
        ["x"],
        "a\x00b",
        "a" * 256,
    ],
)
def test_an_index_that_leads_elsewhere(checkpoint: Path, output: Path, name: object) -> None:
    source = checkpoint / FIRST
    source.rename(checkpoint.parent / "model.safetensors")
    edit_json(checkpoint / INDEX, lambda i: i["weight_map"].update({QKV: name}))
    message = refused(checkpoint, output, SourceError)
    assert INDEX in message or "missing" in message
    if name != "a\x00b":
        assert repr(name) in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 5])
def test_an_index_without_a_map(checkpoint: Path, output: Path, weight_map: object) -> None:
    edit_json(checkpoint / INDEX, lambda i: i.update(weight_map=weight_map))
    refused(checkpoint, output, FileFormatError, INDEX, "weight_map")


def test_a_tensor_in_two_shards(checkpoint: Path, output: Path) -> None:
    tensors = read_tensors(checkpoint)
    half = len(tensors) // 2
    names = sorted(tensors)
    shards = [{n: tensors[n] for n in names[: half + 1]}, {n: tensors[n] for n in names[half:]}]
    write_shards(checkpoint, shards)
    refused(checkpoint, output, FileFormatError, names[half], "is also in model-00001-of-00002")


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_a_shard_cut_anywhere(checkpoint: Path, output: Path, shard: str) -> None:
    whole = (checkpoint / shard).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    cuts = [0, 1, 7, 8, 9, 8 + length // 2, 8 + length - 1, 8 + length, 8 + length + 1]
    cuts += [int(n) for n in np.linspace(8 + length + 2, len(whole) - 1, 12)]
    for cut in cuts:
        (checkpoint / shard).write_bytes(whole[:cut])
        refused(checkpoint, output, FileFormatError, shard)
        assert list(output.parent.iterdir()) == [], cut


# ---- the header of a safetensors file


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[object, str]] = {
    "not JSON": (b"{not json", "not JSON"),
    "not UTF-8": (b"{\xff}", "is not UTF-8 text"),
    "UTF-16": (b"\xff\xfe{\0}\0", "save it as UTF-8"),
    "a huge number": (b'{"a": ' + b"1" * 5000 + b"}", "a number has thousands of digits"),
    "a list": ([], "not a JSON object"),
    "deep nesting": (b"[" * 200_000, "not JSON"),
    "an entry that is no object": ({"t": 5}, "malformed"),
    "an entry that is a list": ({"t": []}, "malformed"),
    "an entry that is text": ({"t": "dtype"}, "malformed"),
    "no dtype": ({"t": {"shape": [1], "data_offsets": [0, 4]}}, "malformed"),
    "no shape": ({"t": {"dtype": "F32", "data_offsets": [0, 4]}}, "malformed"),
    "no offsets": ({"t": {"dtype": "F32", "shape": [1]}}, "malformed"),
    "one offset": ({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "malformed"),
    "three offsets": (
        {"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, "malformed"),
    "negative shape": ({"t": entry([-1, -1], 0, 4)}, "malformed shape"),
    "fractional shape": ({"t": {**entry([1], 0, 4), "shape": [1.0]}}, "malformed shape"),
    "text in the shape": ({"t": {**entry([1], 0, 4), "shape": "1"}}, "malformed"),
    "true in the shape": ({"t": {**entry([1], 0, 4), "shape": [True]}}, "malformed shape"),
    "shape that is no list": ({"t": {**entry([1], 0, 4), "shape": 1}}, "malformed"),
    "negative offset": ({"t": entry([1], -4, 0)}, "malformed shape or offset"),
    "reversed offsets": ({"t": entry([1], 4, 0)}, "malformed shape or offset"),
    "unknown dtype": ({"t": entry([1], 0, 4, "F8_E5M2")}, "unknown type 'F8_E5M2'"),
    "dtype that is no text": ({"t": {**entry([1], 0, 4), "dtype": 4}}, "unknown type 4"),
    "dtype in lower case": ({"t": entry([1], 0, 4, "f32")}, "unknown type"),
    "fewer bytes than the shape needs": ({"t": entry([2], 0, 4)}, "needs 8 bytes"),
    "more bytes than the shape needs": ({"t": entry([1], 0, 8)}, "needs 4 bytes"),
    "absurd shape": ({"t": entry([1 << 62, 1 << 62], 0, 4)}, "needs"),
    "beyond the file": ({"t": entry([4], 8, 24)}, "truncated"),
    "absurd offset": ({"t": entry([4], 1 << 62, (1 << 62) + 16)}, "truncated"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, "'a' and 'b' overlap"),
    "one inside the other": ({"a": entry([4], 0, 16), "b": entry([1], 4, 8)}, "overlap"),
    "the same bytes": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_safetensors_header(name: str, tmp_path: Path) -> None:
    header, part = HEADERS[name]
    path = tmp_path / "model.safetensors"
    write_raw_safetensors(path, header, bytes(16))
    with pytest.raises(FileFormatError, match=part) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [17, 1 << 40, 1 << 63, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(14))
    with pytest.raises(FileFormatError, match="claims a header of"):
        SafetensorsFile(path)


def test_a_good_header_of_the_same_make(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"__metadata__": {"format": "pt"}, "b": entry([2], 8, 16), "a": entry([1, 2], 0, 8)}
    write_raw_safetensors(path, header, struct.pack("<4f", 1, 2, 3, 4))
    with SafetensorsFile(path) as file:
        assert set(file.tensors) == {"a", "b"}
        assert file.array("a").tolist() == [[1, 2]]
        assert file.array("b").tolist() == [3, 4]


def test_spoiled_headers_are_refused_or_read(tmp_path: Path) -> None:
    header = {f"t{i}": entry([4], 16 * i, 16 * i + 16) for i in range(6)}
    text = json.dumps(header).encode()
    draw = random.Random(5)
    path = tmp_path / "model.safetensors"
    refusals = 0
    for _ in range(1000):
        spoiled = bytearray(text)
        for _ in range(draw.randint(1, 3)):
            spoiled[draw.randrange(len(text))] = draw.choice(b'{}[]",:0123456789-eE.tn \xff')
        write_raw_safetensors(path, bytes(spoiled), bytes(96))
        try:
            with SafetensorsFile(path) as file:
                for name in file.tensors:
                    file.array(name)
        except FileFormatError:
            refusals += 1
    assert 0 < refusals < 1000


# ---- the tensors


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = read_tensors(folder)
    change(tensors)
    write_tensors(folder, tensors)


def test_a_wrong_shape(checkpoint: Path, output: Path) -> None:
    change_tensors(checkpoint, lambda t: t.update({QKV: t[QKV].T}))
    refused(checkpoint, output, PlanError, QKV, "has shape (64, 192), expected (192, 64)")


def test_a_missing_tensor(checkpoint: Path, output: Path) -> None:
    change_tensors(checkpoint, lambda t: t.pop(QKV))
    refused(checkpoint, output, PlanError, f"{QKV}: missing")


def test_an_unknown_tensor(checkpoint: Path, output: Path) -> None:
    extra = "gpt_neox.layers.0.attention.adapter.weight"
    change_tensors(checkpoint, lambda t: t.update({extra: np.ones((2, 2), np.float16)}))
    refused(checkpoint, output, PlanError, f"{extra}: not known to GPTNeoXForCausalLM")


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int32, bool])
def test_weights_of_a_wrong_type(checkpoint: Path, output: Path, dtype: type) -> None:
    change_tensors(checkpoint, lambda t: t.update({HEAD: t[HEAD].astype(dtype)}))
    refused(checkpoint, output, PlanError, HEAD, "expected F32, F16, BF16")


def test_several_gaps_come_in_one_error(checkpoint: Path, output: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["gpt_neox.final_layer_norm.bias"]
        tensors[QKV] = tensors[QKV][:100]
        tensors[HEAD] = tensors[HEAD].astype(np.int16)
        tensors["stranger"] = np.ones(1, np.float32)

    change_tensors(checkpoint, spoil)
    refused(
        checkpoint, output, PlanError,
        "gpt_neox.final_layer_norm.bias: missing",
        f"{QKV} (model.safetensors): has shape (100, 64)",
        f"{HEAD}: has type I16", "stranger: not known",
    )  # fmt: skip


def test_many_gaps_are_counted(checkpoint: Path, output: Path) -> None:
    set_config(checkpoint, num_hidden_layers=5)
    message = refused(checkpoint, output, PlanError, "gpt_neox.layers.2.input_layernorm.weight")
    assert "and 28 more" in message
    assert len(message) < 1500


def test_a_config_of_another_size(checkpoint: Path, output: Path) -> None:
    set_config(checkpoint, vocab_size=301)
    refused(checkpoint, output, PlanError, HEAD, "expected (301, 64)")


def test_a_config_that_claims_absurdly_many_layers(checkpoint: Path, output: Path) -> None:
    set_config(checkpoint, num_hidden_layers=1024)
    refused(checkpoint, output, PlanError, "missing", "more")


@pytest.mark.parametrize(
    ("key", "most"), [("num_hidden_layers", 1024), ("num_attention_heads", 4096)]
)
def test_sizes_are_bounded_before_anything_is_made_of_them(
    checkpoint: Path, output: Path, key: str, most: int
) -> None:
    set_config(checkpoint, **{key: most + 1})
    refused(checkpoint, output, ConfigError, key, f"from 1 to {most}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [HEAD, QKV, "gpt_neox.final_layer_norm.weight"])
def test_weights_that_are_no_numbers(
    checkpoint: Path, output: Path, name: str, value: float
) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[name].reshape(-1)[-1] = value

    change_tensors(checkpoint, spoil)
    for kind in ("f32", "q8_0"):
        refused(checkpoint, output, SourceError, name, "1 values", "NaN or infinite", kind=kind)


def test_weights_too_large_for_the_type(checkpoint: Path, output: Path) -> None:
    """A float32 that float16 cannot hold must not become infinity without a word."""

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[HEAD].astype(np.float32)
        tensors[HEAD][3, 3] = 1e6

    change_tensors(checkpoint, spoil)
    refused(checkpoint, output, ConvertError, HEAD, "f16", kind="f16")


def test_weights_of_which_a_type_leaves_nothing(checkpoint: Path, output: Path) -> None:
    """Below a float16 scale's smallest step every block becomes zeros."""

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[HEAD].astype(np.float32) * 1e-12

    change_tensors(checkpoint, spoil)
    refused(checkpoint, output, SourceError, HEAD, "q8_0 cannot hold", kind="q8_0")


# ---- the tokenizer


def pre_tokenizer(*steps: Any) -> Callable[[dict[str, Any]], Any]:
    value = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return lambda data: data.update(pre_tokenizer=value)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}

TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "WordPiece": (lambda d: d["model"].update(type="WordPiece"), UnsupportedError, "'WordPiece'"),
    "Unigram": (
        lambda d: d["model"].update(type="Unigram", vocab=[["a", 0.0]]), ConvertError, "vocab"),
    "no model": (lambda d: d.pop("model"), FileFormatError, "no model.vocab"),
    "empty vocabulary": (
        lambda d: (d["model"].update(vocab={}), d.update(added_tokens=[]))[1],
        FileFormatError, "empty"),
    "byte fallback": (
        lambda d: d["model"].update(byte_fallback=True), UnsupportedError, "byte_fallback"),
    "subword prefix": (
        lambda d: d["model"].update(continuing_subword_prefix="##"), UnsupportedError,
        "continuing_subword_prefix"),
    "suffix": (
        lambda d: d["model"].update(end_of_word_suffix="</w>"), UnsupportedError,
        "end_of_word_suffix"),
    "add_prefix_space": (
        pre_tokenizer({"type": "Digits", "individual_digits": True},
                      {**BYTE_LEVEL, "add_prefix_space": True}), UnsupportedError,
        "add_prefix_space"),
    "Whitespace": (
        pre_tokenizer({"type": "Whitespace"}), UnsupportedError, "pre-tokenizer Whitespace"),
    "Metaspace and Digits": (
        pre_tokenizer({"type": "Metaspace"}, {"type": "Digits"}), UnsupportedError,
        "Metaspace + Digits"),
    "unknown pattern": (
        pre_tokenizer(split(r"\w+"), {**BYTE_LEVEL, "use_regex": False}), UnsupportedError,
        r"\\w+"),
    "no pre-tokenizer": (pre_tokenizer(None), UnsupportedError, "pre-tokenizer"),
    "BertNormalizer": (
        lambda d: d.update(normalizer={"type": "BertNormalizer"}), UnsupportedError,
        "'BertNormalizer'"),
    "normalizer sequence": (
        lambda d: d.update(normalizer={"type": "Sequence", "normalizers": {}}), UnsupportedError,
        "'Sequence'"),
    "post-processor": (
        lambda d: d.update(post_processor={"type": "BertProcessing"}), UnsupportedError,
        "'BertProcessing'"),
    "no merges": (lambda d: d["model"].pop("merges"), FileFormatError, "merges"),
    "merges that are an object": (
        lambda d: d["model"].update(merges={}), FileFormatError, "merges"),
    "a merge of one": (
        lambda d: d["model"]["merges"].append(["a"]), FileFormatError, "malformed merge ['a']"),
    "a merge of three": (
        lambda d: d["model"]["merges"].append("a b c"), FileFormatError, "malformed merge 'a b c'"),
    "a merge with a space inside": (
        lambda d: d["model"]["merges"].append(["a b", "c"]), FileFormatError, "malformed merge"),
    "a merge of numbers": (
        lambda d: d["model"]["merges"].append([1, 2]), FileFormatError, "malformed merge [1, 2]"),
    "a merge that is null": (
        lambda d: d["model"]["merges"].append(None), FileFormatError, "malformed merge None"),
    "repeated id": (
        lambda d: d["model"]["vocab"].update(zzz=5), FileFormatError, "repeated id 5"),
    "negative id": (lambda d: d["model"]["vocab"].update(zzz=-1), FileFormatError, "id -1"),
    "fractional id": (lambda d: d["model"]["vocab"].update(zzz=1.5), FileFormatError, "id 1.5"),
    "id that is text": (lambda d: d["model"]["vocab"].update(zzz="7"), FileFormatError, "id 7"),
    "absurd id": (lambda d: d["model"]["vocab"].update(zzz=1 << 40), FileFormatError, "'zzz'"),
    "ids with a wide gap": (
        lambda d: d["model"]["vocab"].update(zzz=1 << 20), FileFormatError, "ids up to 1048576"),
    "added token without an id": (
        lambda d: d["added_tokens"].append({"content": "x"}), FileFormatError, "added_tokens"),
    "added token that is text": (
        lambda d: d["added_tokens"].append("x"), FileFormatError, "added_tokens"),
    "added token with a bad id": (
        lambda d: d["added_tokens"].append({"id": -3, "content": "x"}), FileFormatError, "-3"),
    "added token with a bad text": (
        lambda d: d["added_tokens"].append({"id": 3, "content": 7}), FileFormatError, "added"),
    "added tokens that are a number": (
        lambda d: d.update(added_tokens=7), FileFormatError, "added_tokens"),
    "more tokens than rows": (
        lambda d: d["model"]["vocab"].update(zzz=300), UnsupportedError, "300 rows"),
    "a lone surrogate in a token": (
        lambda d: d["model"]["vocab"].update({"\ud800": d["model"]["vocab"].pop("!")}),
        FileFormatError, "not Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_bad_tokenizer(checkpoint: Path, output: Path, name: str) -> None:
    change, error, part = TOKENIZERS[name]
    edit_json(checkpoint / "tokenizer.json", lambda data: change(data) and None)
    refused(checkpoint, output, error, part, "tokenizer" if name != "x" else "")


@pytest.mark.parametrize(
    ("single", "part"),
    [
        ([], "template"),
        ([{"SpecialToken": {"id": "!"}}], "template"),
        ([{"Sequence": {"id": "A"}}] * 2, "template"),
        ([{"SpecialToken": {"id": "!"}}] * 2 + [{"Sequence": {"id": "A"}}], "template"),
        ([{"SpecialToken": {"id": "<nobody>"}}, {"Sequence": {"id": "A"}}], "'<nobody>'"),
        ([{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "!"}}], "ends a text with '!'"),
    ],
)
def test_a_template_that_cannot_be_expressed(
    checkpoint: Path, output: Path, single: list[Any], part: str
) -> None:
    template = {"type": "TemplateProcessing", "single": single}
    edit_json(checkpoint / "tokenizer.json", lambda d: d.update(post_processor=template))
    refused(checkpoint, output, UnsupportedError, part)


JUNK = (None, 0, -1, 1.5, "", "x", [], [[]], [1, 2], {}, {"type": []}, {"a": None}, True, 10**20)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to the parts of a JSON value; of long lists and tables only the first few."""
    yield path
    if isinstance(value, dict):
        for key in list(value)[:8]:
            yield from _nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 2)):
            yield from _nodes(value[i], (*path, i))


def _replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    spoiled = copy.deepcopy(value)
    place = spoiled
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = junk
    return spoiled


SEQUENCE_TOKENIZER = {
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\w"), BYTE_LEVEL]},
    "post_processor": {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel"},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {"id": "A"}}],
            },
        ],
    },
}


@pytest.mark.parametrize("variant", ["plain", "sequences"])
def test_junk_anywhere_in_a_tokenizer(checkpoint: Path, tmp_path: Path, variant: str) -> None:
    from infer_os.convert.tokenizer import read_vocabulary

    path = checkpoint / "tokenizer.json"
    config = json.loads((checkpoint / "config.json").read_text())
    data = json.loads(path.read_text())
    if variant == "sequences":
        data |= SEQUENCE_TOKENIZER
    # small, so that it is quickly written a thousand times
    data["model"]["merges"] = data["model"]["merges"][:5]
    data["model"]["vocab"] = dict(list(data["model"]["vocab"].items())[:20])
    for node in _nodes(data):
        for junk in JUNK:
            path.write_text(json.dumps(_replaced(data, node, junk)))
            try:
                read_vocabulary(checkpoint, config, 300)
            except ConvertError:
                continue
            except Exception as error:
                pytest.fail(f"{node} = {junk!r}: {type(error).__name__}: {error}")


def test_junk_anywhere_in_a_config(checkpoint: Path, tmp_path: Path) -> None:
    data = json.loads((checkpoint / "config.json").read_text())
    target = tmp_path / "m.gguf"
    for node in _nodes({**data, **dict(list(data.items())[::-1])}):
        if not node:
            continue
        for junk in JUNK:
            (checkpoint / "config.json").write_text(json.dumps(_replaced(data, node, junk)))
            try:
                convert(ConvertSettings(checkpoint, target, "f16", dry_run=True))
            except (ConvertError, ConfigError):
                continue
            except Exception as error:
                pytest.fail(f"{node} = {junk!r}: {type(error).__name__}: {error}")


def test_junk_in_the_tokenizers_settings(checkpoint: Path, tmp_path: Path) -> None:
    data = {"bos_token": {"content": "x"}, "eos_token": "y", "chat_template": "z"}
    set_config(checkpoint, bos_token_id=..., eos_token_id=...)
    for node in list(_nodes(data))[1:]:
        for junk in (*JUNK, "\ud800"):
            text = json.dumps(_replaced(data, node, junk))
            (checkpoint / "tokenizer_config.json").write_text(text)
            try:
                target = tmp_path / "m.gguf"
                convert(ConvertSettings(checkpoint, target, "q8_0", force=True))
            except ConvertError:
                continue
            except Exception as error:
                pytest.fail(f"{node} = {junk!r}: {type(error).__name__}: {error}")


# ---- settings


def test_an_unknown_type_lists_the_known(output: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'q9_0'.*q8_0.*q4_0"):
        ConvertSettings(PARALLEL, output, "q9_0")


def test_negative_threads(output: Path) -> None:
    with pytest.raises(ConvertError, match="--threads -1"):
        ConvertSettings(PARALLEL, output, threads=-1)


def test_a_path_too_long_for_the_system(output: Path) -> None:
    refused(Path("x" * 5000), output, SourceError)


def test_a_checkpoint_stays_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    convert(ConvertSettings(checkpoint, tmp_path / "m.gguf"))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert copy_checkpoint(checkpoint, tmp_path / "again").is_dir()
    assert os.listdir(tmp_path / "again")


def test_a_small_file_takes_no_more_memory_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_bytes(b"{}")
    assert read_bytes(path, 1 << 60) == b"{}"
    assert read_bytes(path, 2) == b"{}"
    with pytest.raises(FileFormatError, match="larger than 1 bytes"):
        read_bytes(path, 1)
    assert read_bytes(Path("/proc/self/cmdline"), 1 << 20)  # which has no size of its own
