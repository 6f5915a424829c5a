"""LoRA adapters added while converting: PEFT's merged logits, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import compare_with_adapter
from helpers import REFERENCES, TESTS, edit_json
from safetensors.numpy import load_file, save_file

from infer_os.convert.adapter_config import read_adapter_config
from infer_os.convert.adapter_file import adapter_digest, is_sound, write_adapter
from infer_os.convert.adapters import adapters_digest, checked, open_adapter
from infer_os.convert.errors import (
    ConvertError,
    FileFormatError,
    SourceChanged,
    SourceError,
    UnsupportedError,
)
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import AdapterSource
from infer_os.models.architectures import describe
from infer_os.native.gguf_file import read_gguf_header

ADAPTERS = sorted(path.parent for path in (TESTS / "reference/adapters").glob("*/logits.npy"))
BASES = {path.name: path for path in REFERENCES}
GPTJ = TESTS / "reference/adapters/gptj"


def base_of(adapter: Path) -> Path:
    """The checkpoint that an adapter is for."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return BASES[config["base_model_name_or_path"].rpartition("/")[2]]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of GPT-J's, to be changed."""
    return shutil.copytree(GPTJ, tmp_path / "adapter")


def data_of(
    place: Path, adapters: list[tuple[Path, float]], kind: str = "f32", base: Path | None = None
) -> bytes:
    """The tensors of GPT-J with adapters."""
    sources = tuple(AdapterSource(folder, scale, str(folder)) for folder, scale in adapters)
    target = place / "made.gguf"
    settings = ConvertSettings(base or BASES["gptj"], target, kind, force=True, adapters=sources)
    convert(settings)
    return target.read_bytes()[read_gguf_header(target).data_offset :]


def refused(place: Path, adapter: Path, error: type[ConvertError], *said: str) -> None:
    with pytest.raises(error) as raised:
        data_of(place, [(adapter, 1.0)])
    assert all(text in str(raised.value) for text in said), raised.value
    assert "\n" not in str(raised.value)
    assert not (place / "made.gguf").exists()


@pytest.mark.parametrize("adapter_folder", ADAPTERS, ids=lambda path: path.name)
def test_logits_equal_those_of_peft(adapter_folder: Path, tmp_path: Path) -> None:
    base = base_of(adapter_folder)
    result = compare_with_adapter(base, adapter_folder, "f32", tmp_path / "m.gguf")
    assert result.kl < 1e-5
    assert result.argmax_equal == result.n_tokens


@pytest.mark.parametrize("name", ["gptj", "neox-parallel"])
def test_added_before_a_rotation_is_folded(name: str, tmp_path: Path) -> None:
    adapter = TESTS / "reference/adapters" / name
    target = tmp_path / "m.gguf"
    result = compare_with_adapter(base_of(adapter), adapter, "f32", target, fold_rotation=True)
    assert result.kl < 1e-5
    assert result.argmax_equal == result.n_tokens


def test_every_family_has_an_adapter() -> None:
    families = {
        json.loads((base_of(a) / "config.json").read_text())["model_type"] for a in ADAPTERS
    }
    assert families == {"gptj", "gpt_neox", "bloom", "gpt2"}


def test_quantized_after_adding(tmp_path: Path) -> None:
    """In float32 first: the same bytes as a checkpoint that PEFT's sum was written into."""
    adapter = TESTS / "reference/adapters/gpt2"
    folder = shutil.copytree(BASES["gpt2"], tmp_path / "merged")
    weights = load_file(folder / "model.safetensors")
    matrices = load_file(adapter / "adapter_model.safetensors")
    for name, a in matrices.items():
        if "lora_A" in name:
            b = matrices[name.replace("lora_A", "lora_B")]
            stored = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[stored] = weights[stored].astype(np.float32) + ((b * np.float32(2)) @ a).T
    save_file(weights, folder / "model.safetensors")
    for kind in ("q8_0", "q4_0"):
        merged = np.frombuffer(data_of(tmp_path, [], kind, folder), np.uint8)
        added = np.frombuffer(data_of(tmp_path, [(adapter, 1.0)], kind, BASES["gpt2"]), np.uint8)
        # sums may round differently in the last bit: one value in thousands changes its step
        assert len(merged) == len(added)
        assert np.mean(merged != added) < 1e-3


def test_a_scale(adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / "adapter_config.json", lambda config: config.update(lora_alpha=4))
    assert data_of(tmp_path, [(adapter, 1.0)]) == data_of(tmp_path, [(GPTJ, 0.5)])
    assert data_of(tmp_path, [(GPTJ, 1.0)]) != data_of(tmp_path, [(GPTJ, 0.5)])


def test_several(adapter: Path, tmp_path: Path) -> None:
    twice = data_of(tmp_path, [(GPTJ, 1.0), (GPTJ, -1.0)])
    plain = np.frombuffer(data_of(tmp_path, []), np.float32)
    assert np.allclose(np.frombuffer(twice, np.float32), plain, atol=1e-5)
    path = adapter / "adapter_model.safetensors"
    save_file({k: v * 0 for k, v in load_file(path).items()}, path)
    assert data_of(tmp_path, [(adapter, 1.0)]) == data_of(tmp_path, [])


def test_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.frombuffer(data_of(tmp_path, [(GPTJ, 1.0)]), np.float32)
    monkeypatch.setattr("infer_os.convert.blocks._BLOCK_BYTES", 4 * 64 * 2 * 3)
    pieces = np.frombuffer(data_of(tmp_path, [(GPTJ, 1.0)]), np.float32)
    assert np.allclose(whole, pieces, atol=1e-6)


def test_the_file_says_what_was_added(tmp_path: Path) -> None:
    data_of(tmp_path, [(GPTJ, 0.5)])
    metadata = read_gguf_header(tmp_path / "made.gguf").metadata
    assert metadata["inferos.lora"] == str(GPTJ)
    source = AdapterSource(GPTJ, 0.5, "")
    assert metadata["inferos.lora.sha256"] == adapters_digest([source])
    assert adapters_digest([AdapterSource(GPTJ, 1.0, "")]) != adapters_digest([source])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOKR"}, "a LOKR adapter; only LORA"),
        ({"use_dora": True}, "use_dora: DoRA is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication is"),
        ({"a_later_invention": {"x": 1}}, "a_later_invention is"),
        ({"alpha_pattern": {"(?!a)b": 3}}, "alpha_pattern: '(?!a)b' from letter 2: not a pattern"),
    ],
)
def test_more_than_lora_is_refused(
    adapter: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    edit_json(adapter / "adapter_config.json", lambda config: config.update(change))
    refused(tmp_path, adapter, UnsupportedError, "adapter_config.json", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 5}, "matrices of rank 4, but adapter_config.json says 5"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern of 'q_proj' is -1"),
        ({"rank_pattern": [1]}, "rank_pattern is not a table"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; expected true or false"),
    ],
)
def test_numbers_that_cannot_be(
    adapter: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    edit_json(adapter / "adapter_config.json", lambda config: config.update(change))
    refused(tmp_path, adapter, FileFormatError, said)


@pytest.mark.parametrize("pattern", ["(", "q_proj)", "a**", "x" * 300])
def test_patterns_that_are_malformed(adapter: Path, tmp_path: Path, pattern: str) -> None:
    change = {"rank_pattern": {pattern: 4}}
    edit_json(adapter / "adapter_config.json", lambda config: config.update(change))
    refused(tmp_path, adapter, UnsupportedError, "rank_pattern: ", "not a pattern of module names")


@pytest.mark.parametrize("option", ["--lora", "--adapter"])
def test_patterns_that_would_never_end(adapter: Path, tmp_path: Path, option: str) -> None:
    """Python's ``re`` tries each of 2^38 ways to see that they do not match."""
    change = {"alpha_pattern": {"(|.)" * 38 + "-": 4, "q_proj": 8}}
    edit_json(adapter / "adapter_config.json", lambda config: config.update(change))
    if option == "--lora":
        assert data_of(tmp_path, [(adapter, 1.0)]) == data_of(tmp_path, [(GPTJ, 1.0)])
        return
    data_of(tmp_path, [])
    header = read_gguf_header(tmp_path / "made.gguf")
    source = AdapterSource(adapter, 1.0, "a", option)
    target = tmp_path / f"{adapter_digest(source, header)}.gguf"
    write_adapter(source, header, target)
    assert is_sound(target)


WRONG = [
    None, True, 0, -1, 1.5, 1e308, float("nan"), "", "x", "\ud800", "a" * 10_000, [], [1], [[]], {},
    {"x": 1}, {"": 1}, {"(": 1}, {"x": {"y": []}}, {"q_proj": "4"}, {"a\nb": 4},
]  # fmt: skip


def test_any_value_of_any_setting(adapter: Path, tmp_path: Path) -> None:
    """It is read, or one line says what is wrong."""
    path = adapter / "adapter_config.json"
    usual = json.loads(path.read_text())
    prefixes = describe(json.loads((BASES["gptj"] / "config.json").read_text())).prefixes
    n_refused = 0
    for key in {*usual, "rank_pattern", "alpha_pattern", "use_rslora", "loftq_config"}:
        for value in WRONG:
            path.write_text(json.dumps({**usual, key: value}))
            with pytest.raises(ConvertError) as raised:
                read_adapter_config(path).factor("transformer.h.0.attn.q_proj", 4)
                with open_adapter(AdapterSource(adapter, 1.0, "a"), {}, prefixes):
                    pass
            said = str(raised.value)
            assert "\n" not in said and len(said) < 600, (key, value)
            n_refused += "this model has no" not in said
    assert n_refused > 200


def test_values_that_are_too_large(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    a = "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"
    b = a.replace("lora_A", "lora_B")
    for change in ({a: weights[a] * 1e30}, {a: weights[a] * 1e3, b: weights[b] * 1e4}):
        save_file({**weights, **change}, path)
        refused(tmp_path, adapter, FileFormatError, "h.0.attn.q_proj", "no weight is larger than")
    # what one matrix makes large and the other small is large in between
    save_file({**weights, a: weights[a] * 1e20, b: weights[b] * 1e-20}, path)
    refused(tmp_path, adapter, FileFormatError, "no weight is larger than")
    save_file({**weights, a: np.full_like(weights[a], np.nan)}, path)
    refused(tmp_path, adapter, FileFormatError, "NaN or infinite")
    save_file({**weights, a: weights[a][:0], b: weights[b][:, :0]}, path)
    refused(tmp_path, adapter, UnsupportedError, "matrices of rank 0; expected 1 to 4096")


def test_a_source_that_changes_meanwhile(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = adapter / "adapter_model.safetensors"

    def cut(*given: Any) -> Any:
        os.truncate(path, path.stat().st_size // 2)
        return checked(*given)

    monkeypatch.setattr("infer_os.convert.adapters.checked", cut)
    refused(tmp_path, adapter, SourceChanged, "was cut short while it was in use")


def test_files_that_are_missing(adapter: Path, tmp_path: Path) -> None:
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").unlink()
    refused(tmp_path, adapter, SourceError, "it has no weights, adapter_model.safetensors or")
    (adapter / "adapter_model.safetensors").write_bytes(weights[:100])
    refused(tmp_path, adapter, FileFormatError, "adapter_model.safetensors")
    (adapter / "adapter_config.json").unlink()
    refused(tmp_path, adapter, SourceError, "not a LoRA adapter: it has no adapter_config.json")


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ("lora_B.weight", "lora_magnitude_vector", UnsupportedError, "not a matrix of plain LoRA"),
        ("lora_B.weight", "hada_w1_a", UnsupportedError, "not a matrix of plain LoRA"),
        ("attn.q_proj", "attn.query", SourceError, "this model has no transformer.h.0.attn.query"),
        ("h.0.", "h.7.", SourceError, "it was made for someone/gptj"),
    ],
)
def test_names_that_do_not_fit(
    adapter: Path, tmp_path: Path, old: str, new: str, error: type[ConvertError], said: str
) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({key.replace(old, new): value for key, value in load_file(path).items()}, path)
    refused(tmp_path, adapter, error, said)


def test_shapes_that_do_not_fit(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"
    save_file({**weights, name: weights[name][:, :32]}, path)
    refused(tmp_path, adapter, SourceError, "adds a matrix of shape (64, 32) to one of (64, 64)")
    save_file({**weights, name: weights[name][:2]}, path)
    refused(tmp_path, adapter, FileFormatError, "matrices of rank 2 and 4")
    save_file({key: value for key, value in weights.items() if key != name}, path)
    refused(tmp_path, adapter, FileFormatError, "expected both A and B")
    save_file({}, path)
    refused(tmp_path, adapter, SourceError, "holds no matrices")


def test_a_tensor_trained_as_a_whole(tmp_path: Path) -> None:
    adapter = shutil.copytree(TESTS / "reference/adapters/gptj-patterns", tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = "base_model.model.lm_head.base_layer.weight"
    weights[name] = weights[name] + np.float32(0.5)
    save_file(weights, path)
    refused(tmp_path, adapter, UnsupportedError, name, "trained as a whole")
