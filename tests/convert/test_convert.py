"""Convert whole folders: what must come out, and that it does so in every variant of a folder."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from comparison import all_logits, compare_logits
from helpers import (
    PARALLEL,
    REFERENCES,
    SEQUENTIAL,
    Converter,
    copy_checkpoint,
    edit_json,
    read_tensors,
    set_config,
    write_shards,
    write_tensors,
)

from infer_os.convert import blocks
from infer_os.convert.pipeline import convert
from infer_os.convert.report import ConversionReport
from infer_os.convert.settings import ConvertSettings
from infer_os.models.network import ERF_GELU, GELU_KEY
from infer_os.native.gguf_file import GgufArray, GgufHeader, read_gguf_header
from infer_os.native.model import LlamaModel


def run(folder: Path, output: Path, kind: str = "f16") -> ConversionReport:
    return convert(ConvertSettings(folder, output, kind, threads=1))


def array_of(header: GgufHeader, key: str) -> list[object]:
    value = header.metadata[key]
    assert isinstance(value, GgufArray)
    return list(value)


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Its tensors without the buffers that some files carry along."""
    buffers = ("attention.bias", "masked_bias", "inv_freq")
    return {k: v for k, v in read_tensors(folder).items() if not k.endswith(buffers)}


def stored(path: Path) -> dict[str, np.ndarray]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def test_metadata_of_the_file(converted: Converter) -> None:
    metadata = read_gguf_header(converted(SEQUENTIAL)).metadata
    expected = {
        "general.architecture": "gptneox", "general.file_type": 1,
        "general.name": "neox-sequential", "gptneox.block_count": 2,
        "gptneox.embedding_length": 64, "gptneox.feed_forward_length": 256,
        "gptneox.attention.head_count": 2, "gptneox.context_length": 128,
        "gptneox.rope.dimension_count": 16, "gptneox.rope.freq_base": 5000.0,
        "gptneox.use_parallel_residual": False, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "inferos.source.architecture": "GPTNeoXForCausalLM",
        "inferos.tokenizer.normalizer": "NFC",
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected
    assert metadata["gptneox.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_f32_tensors_hold_the_checkpoints_numbers(converted: Converter) -> None:
    tensors, written = read_tensors(PARALLEL), stored(converted(kind="f32"))
    for target, source in {
        "token_embd.weight": "gpt_neox.embed_in.weight",
        "output.weight": "embed_out.weight",
        "output_norm.bias": "gpt_neox.final_layer_norm.bias",
        "blk.1.ffn_down.weight": "gpt_neox.layers.1.mlp.dense_4h_to_h.weight",
        "blk.0.attn_output.bias": "gpt_neox.layers.0.attention.dense.bias",
    }.items():
        assert np.array_equal(written[target], tensors[source].astype(np.float32)), target
    fused = tensors["gpt_neox.layers.1.attention.query_key_value.weight"].astype(np.float32)
    unfused = fused.reshape(2, 3, 32, 64).transpose(1, 0, 2, 3).reshape(192, 64)
    assert np.array_equal(written["blk.1.attn_qkv.weight"], unfused)
    assert not np.array_equal(fused, unfused)
    bias = tensors["gpt_neox.layers.1.attention.query_key_value.bias"].astype(np.float32)
    assert np.array_equal(
        written["blk.1.attn_qkv.bias"], bias.reshape(2, 3, 32).transpose(1, 0, 2).reshape(-1)
    )


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_k_m", "f16"])
def test_types_of_the_tensors(converted: Converter, kind: str) -> None:
    header = read_gguf_header(converted(kind=kind))
    types = {tensor.name: tensor.type.name for tensor in header.tensors}
    # rows of 64 hold no block of 256: the mixtures fall back to blocks of 32
    matrix = {"q4_k_m": "q5_0"}.get(kind, kind)
    head = {"q4_0": "q8_0", "q4_k_m": "q8_0"}.get(kind, kind)
    assert types["blk.0.ffn_up.weight"] == matrix
    # a mixture keeps the embedding a step finer
    assert types["token_embd.weight"] == {"q4_k_m": "q5_1"}.get(kind, matrix)
    assert types["output.weight"] == head
    one_dimensional = {name for name in types if "norm" in name or name.endswith(".bias")}
    assert {types[name] for name in one_dimensional} == {"f32"}
    assert len(one_dimensional) == 18


def test_a_fallback_is_reported(tmp_path: Path) -> None:
    report = run(PARALLEL, tmp_path / "k.gguf", "q4_k_m")
    assert any("4 tensors are q5_0" in note and "q4_k" in note for note in report.notes)
    assert any("1 tensor is q8_0" in note for note in report.notes)
    assert not run(PARALLEL, tmp_path / "h.gguf", "q8_0").notes


def test_the_report_agrees_with_the_file(tmp_path: Path) -> None:
    report = run(PARALLEL, tmp_path / "m.gguf", "q8_0")
    header = read_gguf_header(tmp_path / "m.gguf")
    assert report.written
    assert report.output == tmp_path / "m.gguf"
    assert report.n_bytes == (tmp_path / "m.gguf").stat().st_size
    assert report.bits_per_weight == pytest.approx(header.bits_per_weight)
    assert sum(row.n_tensors for row in report.classes) == len(header.tensors)
    assert sum(row.n_bytes for row in report.classes) == header.weight_bytes
    assert report.n_params == sum(t.size for t in weights_of(PARALLEL).values())
    errors = {row.type: row.stats.rms_error for row in report.classes}
    assert errors["f32"] == 0
    assert 0 < errors["q8_0"] < 0.02


def test_a_dry_run_plans_the_same_and_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    planned = convert(ConvertSettings(PARALLEL, target, "q8_0", dry_run=True))
    assert not planned.written
    assert list(tmp_path.iterdir()) == []
    done = run(PARALLEL, target, "q8_0")
    assert planned.bits_per_weight == done.bits_per_weight
    assert [(r.role, r.type, r.n_bytes) for r in planned.classes] == [
        (r.role, r.type, r.n_bytes) for r in done.classes
    ]


def test_the_output_is_named_after_folder_and_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = convert(ConvertSettings(PARALLEL, None, "Q8_0"))
    assert report.output == Path("neox-parallel-q8_0.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["neox-parallel-q8_0.gguf"]


def test_progress_runs_by_bytes_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(
        ConvertSettings(PARALLEL, tmp_path / "m.gguf"), lambda done, of: calls.append((done, of))
    )
    totals = {total for _, total in calls}
    assert totals == {sum(t.nbytes for t in weights_of(PARALLEL).values())}
    done = [d for d, _ in calls]
    assert done == sorted(set(done))
    assert done[-1] == totals.pop()


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
def test_the_same_bytes_whatever_the_threads(tmp_path: Path, kind: str) -> None:
    first = None
    for threads in (1, 2, 3, 5):
        target = tmp_path / f"{threads}.gguf"
        convert(ConvertSettings(PARALLEL, target, kind, threads))
        first = first or target.read_bytes()
        assert target.read_bytes() == first


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda path: path.name)
@pytest.mark.parametrize("block_bytes", [1, 3000])
def test_the_same_bytes_whatever_the_blocks(
    converted: Converter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    block_bytes: int,
) -> None:
    expected = converted(folder, "q8_0").read_bytes()
    largest = 0
    original = blocks.quantize_rows

    def spy(rows: np.ndarray, *args: object, **options: object) -> object:
        nonlocal largest
        order = options.get("row_order")
        n_rows = len(rows) if order is None else len(order)  # type: ignore[arg-type]
        row_bytes = rows.shape[1] * rows.itemsize
        largest = max(largest, n_rows * row_bytes if n_rows > 1 else 0)
        return original(rows, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(blocks, "quantize_rows", spy)
    copy = copy_checkpoint(folder, tmp_path / folder.name)
    run(copy, tmp_path / "m.gguf", "q8_0")
    assert (tmp_path / "m.gguf").read_bytes() == expected
    assert largest <= block_bytes


def test_shards_and_one_file_give_the_same(
    converted: Converter, tmp_path: Path, checkpoint: Path
) -> None:
    write_tensors(checkpoint, read_tensors(checkpoint))
    run(checkpoint, tmp_path / "m.gguf")
    assert stored(tmp_path / "m.gguf").keys() == stored(converted()).keys()
    for name, array in stored(converted()).items():
        assert np.array_equal(array, stored(tmp_path / "m.gguf")[name]), name


def test_many_shards_in_any_order(converted: Converter, tmp_path: Path, checkpoint: Path) -> None:
    tensors = read_tensors(checkpoint)
    names = sorted(tensors, key=lambda name: name[::-1])
    shards = [{name: tensors[name] for name in names[i::7]} for i in range(7)]
    write_shards(checkpoint, shards)
    run(checkpoint, tmp_path / "m.gguf")
    for name, array in stored(converted()).items():
        assert np.array_equal(array, stored(tmp_path / "m.gguf")[name]), name


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_weights_of_other_widths(tmp_path: Path, checkpoint: Path, dtype: str) -> None:
    tensors = {k: v.astype(np.float32) for k, v in read_tensors(checkpoint).items()}
    if dtype == "F32":
        write_tensors(checkpoint, tensors)
    else:
        _write_bf16(checkpoint, tensors)
        tensors = {k: _cut_to_bf16(v) for k, v in tensors.items()}
    run(checkpoint, tmp_path / "m.gguf", "f32")
    written = stored(tmp_path / "m.gguf")
    assert np.array_equal(written["output.weight"], tensors["embed_out.weight"])
    assert np.array_equal(
        written["output_norm.weight"], tensors["gpt_neox.final_layer_norm.weight"]
    )


def _cut_to_bf16(array: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF0000).view(np.float32)


def _write_bf16(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """numpy has no bfloat16, so the file is packed by hand; at an odd place in the file, too."""
    header, data = {}, b""
    for name, array in tensors.items():
        bits = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16", "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(bits)],
        }  # fmt: skip
        data += bits
    text = json.dumps(header)
    text += " " * (1 - len(text) % 2)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def test_tensors_at_odd_addresses(converted: Converter, tmp_path: Path, checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = data[8 : 8 + length].rstrip() + b" "
        text += b" " * (1 - len(text) % 2)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        assert (8 + len(text)) % 2
    run(checkpoint, tmp_path / "m.gguf", "q8_0")
    for name, array in stored(converted(kind="q8_0")).items():
        assert np.array_equal(array, stored(tmp_path / "m.gguf")[name]), name


# ---- configs


def logits_of(folder: Path, output: Path) -> np.ndarray:
    run(folder, output, "f32")
    return all_logits(output, [int(t) for t in np.load(folder / "tokens.npy")])


@pytest.mark.parametrize("folder", [PARALLEL, SEQUENTIAL], ids=lambda path: path.name)
def test_both_rotary_spellings(folder: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(folder, tmp_path / folder.name)
    config = json.loads((copy / "config.json").read_text())
    if "rope_parameters" in config:
        rope = config["rope_parameters"]
        set_config(
            copy,
            rope_parameters=...,
            rotary_pct=rope["partial_rotary_factor"],
            rotary_emb_base=rope["rope_theta"],
        )
    else:
        rope = {
            "rope_type": "default",
            "partial_rotary_factor": config["rotary_pct"],
            "rope_theta": config["rotary_emb_base"],
        }
        set_config(copy, rotary_pct=..., rotary_emb_base=..., rope_parameters=rope)
    got = logits_of(copy, tmp_path / "m.gguf")
    assert compare_logits(np.load(folder / "logits.npy"), got).kl < 1e-5


def test_the_rotary_settings_matter(tmp_path: Path, checkpoint: Path) -> None:
    set_config(checkpoint, rope_parameters=..., rotary_pct=0.5, rotary_emb_base=10000)
    got = logits_of(checkpoint, tmp_path / "m.gguf")
    assert compare_logits(np.load(PARALLEL / "logits.npy"), got).kl > 1e-4


def test_attention_without_bias(tmp_path: Path, checkpoint: Path) -> None:
    """A checkpoint without attention biases computes as one whose biases are zero."""
    tensors = read_tensors(checkpoint)
    biases = [n for n in tensors if n.endswith(("query_key_value.bias", "attention.dense.bias"))]
    assert len(biases) == 4
    write_tensors(checkpoint, {k: v * (k not in biases) for k, v in tensors.items()})
    expected = logits_of(checkpoint, tmp_path / "zero.gguf")
    write_tensors(checkpoint, {k: v for k, v in tensors.items() if k not in biases})
    set_config(checkpoint, attention_bias=False)
    got = logits_of(checkpoint, tmp_path / "none.gguf")
    assert np.array_equal(expected, got)


def test_a_tied_head(tmp_path: Path, checkpoint: Path) -> None:
    tensors = read_tensors(checkpoint)
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].copy()
    write_tensors(checkpoint, tensors)
    expected = logits_of(checkpoint, tmp_path / "untied.gguf")
    del tensors["embed_out.weight"]
    write_tensors(checkpoint, tensors)
    set_config(checkpoint, tie_word_embeddings=True)
    assert np.array_equal(expected, logits_of(checkpoint, tmp_path / "tied.gguf"))


def test_a_tied_head_that_is_stored_all_the_same(tmp_path: Path, checkpoint: Path) -> None:
    tensors = read_tensors(checkpoint)
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].copy()
    write_tensors(checkpoint, tensors)
    set_config(checkpoint, tie_word_embeddings=True)
    run(checkpoint, tmp_path / "m.gguf")


def test_buffers_are_ignored(converted: Converter, tmp_path: Path, checkpoint: Path) -> None:
    tensors = read_tensors(checkpoint)
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = np.tril(np.ones((1, 1, 128, 128), bool))
        tensors[f"{attention}.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{attention}.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write_tensors(checkpoint, tensors)
    run(checkpoint, tmp_path / "m.gguf")
    assert stored(tmp_path / "m.gguf").keys() == stored(converted()).keys()


def test_the_model_type_names_the_architecture_where_the_config_does_not(
    tmp_path: Path, checkpoint: Path
) -> None:
    set_config(checkpoint, architectures=...)
    assert run(checkpoint, tmp_path / "m.gguf").architecture == "GPTNeoXForCausalLM"


def test_an_erf_gelu_is_noted(tmp_path: Path, checkpoint: Path) -> None:
    set_config(checkpoint, hidden_act="gelu")
    assert any("erf" in note for note in run(checkpoint, tmp_path / "m.gguf").notes)
    assert read_gguf_header(tmp_path / "m.gguf").metadata[GELU_KEY] == ERF_GELU


def test_a_tanh_gelu_is_not(tmp_path: Path, checkpoint: Path) -> None:
    assert not run(checkpoint, tmp_path / "m.gguf").notes
    assert GELU_KEY not in read_gguf_header(tmp_path / "m.gguf").metadata


# ---- vocabulary


def test_a_vocabulary_smaller_than_the_embedding_is_padded(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    report = run(SEQUENTIAL, target)
    header = read_gguf_header(target)
    tokens = array_of(header, "tokenizer.ggml.tokens")
    types = array_of(header, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 320
    assert types[300:] == [5] * 20
    assert 5 not in types[:300]
    assert len(set(tokens)) == 320
    assert any("padded" in note for note in report.notes)
    with LlamaModel(target) as model:
        assert (model.vocab.n_tokens, model.vocab.n_normal) == (320, 300)


def _fewer_rows(folder: Path, rows: int) -> None:
    tensors = read_tensors(folder)
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        tensors[name] = tensors[name][:rows]
    write_tensors(folder, tensors)
    set_config(folder, vocab_size=rows)


def test_added_tokens_without_a_row_are_left_out(tmp_path: Path, checkpoint: Path) -> None:
    # the last two of 300 tokens are added runs of spaces
    _fewer_rows(checkpoint, 298)
    report = run(checkpoint, tmp_path / "m.gguf")
    assert any("2 added tokens" in note for note in report.notes)
    with LlamaModel(tmp_path / "m.gguf") as model:
        assert model.vocab.n_tokens == 298
        assert max(model.vocab.tokenize("a      b")) < 298


def test_a_special_id_without_a_row_is_left_out(tmp_path: Path, checkpoint: Path) -> None:
    set_config(checkpoint, pad_token_id=299)
    _fewer_rows(checkpoint, 298)
    run(checkpoint, tmp_path / "m.gguf")
    metadata = read_gguf_header(tmp_path / "m.gguf").metadata
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_special_tokens_by_text(tmp_path: Path, checkpoint: Path) -> None:
    set_config(checkpoint, bos_token_id=..., eos_token_id=...)
    settings = {"eos_token": {"content": "<|endoftext|>"}, "unk_token": "<|endoftext|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    run(checkpoint, tmp_path / "m.gguf")
    metadata = read_gguf_header(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == 0
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert "tokenizer.ggml.bos_token_id" not in metadata


@pytest.mark.parametrize("rename", [False, True])
def test_a_checkpoint_without_an_end_token_ends_at_a_special_one(
    tmp_path: Path, checkpoint: Path, rename: bool
) -> None:
    """llama.cpp takes token 11 for a byte-level vocabulary that names none."""
    set_config(checkpoint, bos_token_id=..., eos_token_id=...)
    if rename:
        edit_json(checkpoint / "tokenizer.json", _rename_end)
    report = run(checkpoint, tmp_path / "m.gguf")
    assert read_gguf_header(tmp_path / "m.gguf").metadata["tokenizer.ggml.eos_token_id"] == 0
    assert any("no end token named; '<|" in note for note in report.notes)
    with LlamaModel(tmp_path / "m.gguf", vocab_only=True) as model:
        assert [t for t in range(model.vocab.n_tokens) if model.vocab.is_end(t)] == [0]


def _rename_end(data: dict) -> None:
    data["added_tokens"][0]["content"] = "<|mark|>"
    vocab = data["model"]["vocab"]
    data["model"]["vocab"] = {k.replace("<|endoftext|>", "<|mark|>"): v for k, v in vocab.items()}


def _bos_template(data: dict) -> None:
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }


@pytest.mark.parametrize("bos", [0, 7, ...])
def test_a_template_that_starts_each_text(tmp_path: Path, checkpoint: Path, bos: object) -> None:
    from tokenizers import Tokenizer

    set_config(checkpoint, bos_token_id=bos)
    edit_json(checkpoint / "tokenizer.json", _bos_template)
    run(checkpoint, tmp_path / "m.gguf")
    oracle = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with LlamaModel(tmp_path / "m.gguf", vocab_only=True) as model:
        for text in ("", "hello"):
            assert model.vocab.tokenize(text) == oracle.encode(text).ids
            plain = oracle.encode(text, add_special_tokens=False).ids
            assert model.vocab.tokenize(text, add_special=False) == plain


def test_merges_in_the_older_spelling(
    converted: Converter, tmp_path: Path, checkpoint: Path
) -> None:
    def join(data: dict) -> None:
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]

    edit_json(checkpoint / "tokenizer.json", join)
    run(checkpoint, tmp_path / "m.gguf")
    key = "tokenizer.ggml.merges"
    ours = array_of(read_gguf_header(tmp_path / "m.gguf"), key)
    assert ours == array_of(read_gguf_header(converted()), key)


@pytest.mark.parametrize("where", ["settings", "file"])
def test_a_chat_template_comes_along(tmp_path: Path, checkpoint: Path, where: str) -> None:
    template = "{{ messages[0].content }} ü"
    if where == "settings":
        (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    else:
        (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    run(checkpoint, tmp_path / "m.gguf")
    with LlamaModel(tmp_path / "m.gguf", vocab_only=True) as model:
        assert model.chat_template == template


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / os.fsdecode(b"gr\xfcn"))
    target = tmp_path / os.fsdecode(b"\xff.gguf")
    run(folder, target)
    with LlamaModel(target) as model:
        assert model.vocab.n_tokens == 300
