"""GPT-NeoX's own files, one per layer: the same model as from Hugging Face's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PARALLEL, SEQUENTIAL, TESTS, copy_checkpoint, read_tensors
from torch_writer import write_torch

from infer_os.convert.errors import ConvertError, FileFormatError, PlanError, SourceError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import AdapterSource
from infer_os.convert.torch_file import TorchFile
from infer_os.native.gguf_file import read_gguf_header, tensor_array

_OUTER = {
    "gpt_neox.embed_in.weight": (0, "word_embeddings.weight"),
    "gpt_neox.final_layer_norm.weight": (-2, "norm.weight"),
    "gpt_neox.final_layer_norm.bias": (-2, "norm.bias"),
    "embed_out.weight": (-1, "final_linear.weight"),
}


def layer_folder(reference: Path, place: Path, *, legacy: bool = False) -> Path:
    """A reference checkpoint as the training code would have left it."""
    folder = copy_checkpoint(reference, place / reference.name)
    layers: dict[int, dict[str, object]] = {}
    tensors = read_tensors(folder)
    n_layer = 1 + max(int(m[1]) for name in tensors if (m := re.search(r"layers\.(\d+)\.", name)))
    for name, value in tensors.items():
        if name in _OUTER:
            number, short = _OUTER[name]
            # after the layers: a module without weights, the norm, the head
            number = n_layer + 5 + number if number < 0 else number
        else:
            found = re.fullmatch(r"gpt_neox\.layers\.(\d+)\.(.+)", name)
            assert found is not None, name
            number, short = int(found[1]) + 2, found[2]
        layers.setdefault(number, {})[short] = value
    for path in folder.glob("model*"):
        path.unlink()
    for number, content in layers.items():
        path = folder / f"layer_{number:02}-model_00-model_states.pt"
        write_torch(path, content, legacy=legacy)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("reference", [PARALLEL, SEQUENTIAL], ids=lambda path: path.name)
def test_the_same_file_comes_out(reference: Path, legacy: bool, tmp_path: Path) -> None:
    folder = layer_folder(reference, tmp_path / "layers", legacy=legacy)
    names = {path.name for path in folder.glob("layer_*")}
    assert {f"layer_{i:02}-model_00-model_states.pt" for i in (0, 2, 3)} < names
    made = []
    for source in (reference, folder):
        target = tmp_path / f"{len(made)}.gguf"
        convert(ConvertSettings(source, target, "q8_0", verify=True))
        made.append(target.read_bytes())
    assert made[0] == made[1]


def refused(folder: Path, place: Path, error: type[ConvertError], said: str) -> None:
    with pytest.raises(error) as raised:
        convert(ConvertSettings(folder, place / "m.gguf", "q8_0"))
    assert said in str(raised.value)
    assert not (place / "m.gguf").exists()


def test_what_does_not_fit(tmp_path: Path) -> None:
    folder = layer_folder(PARALLEL, tmp_path / "layers")
    second = folder / "layer_03-model_00-model_states.pt"
    data = second.read_bytes()
    second.unlink()
    refused(folder, tmp_path, PlanError, "gpt_neox.layers.1.input_layernorm.weight: missing")
    second.write_bytes(data[:100])
    refused(folder, tmp_path, FileFormatError, second.name)
    second.write_bytes(data)
    (folder / "layer_03-model_01-model_states.pt").write_bytes(data)
    refused(folder, tmp_path, SourceError, "layer_00-model_01-model_states.pt is missing")


# ---- cut for several GPUs

_ROWS = ("query_key_value.weight", "query_key_value.bias", "dense_h_to_4h.weight",
         "dense_h_to_4h.bias", "word_embeddings.weight", "final_linear.weight")  # fmt: skip
_COLUMNS = ("attention.dense.weight", "dense_4h_to_h.weight")
_BIASES = ("attention.dense.bias", "dense_4h_to_h.bias")


def cut(folder: Path, n: int, *, parallel: bool, padding: int = 0) -> Path:
    """Cut every layer for ``n`` GPUs, as Megatron does; ``padding`` rows are added to tokens."""
    for path in sorted(folder.glob("layer_*")):
        whole = TorchFile(path)
        tensors = {name: np.array(whole.array(name)) for name in whole.tensors}
        whole.close()
        for part in range(n):
            pieces = {}
            for name, value in tensors.items():
                if name.endswith(_ROWS):
                    if padding and not name.endswith(_ROWS[:4]):
                        more = np.full((padding, value.shape[1]), 7, value.dtype)
                        value = np.concatenate([value, more])
                    value = np.split(value, n)[part]
                elif name.endswith(_COLUMNS):
                    value = np.split(value, n, axis=1)[part]
                elif name.endswith(_BIASES) and parallel:
                    # shares whose sum is exact
                    value = value * 2 if part == 0 else -value if part == 1 else value * 0
                pieces[name] = value
            name = path.name.replace("model_00", f"model_{part:02}")
            write_torch(path.with_name(name), pieces)
    return folder


def converted(source: Path, target: Path, kind: str, **settings: Any) -> bytes:
    convert(ConvertSettings(source, target, kind, **settings))
    return target.read_bytes()


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("reference", [PARALLEL, SEQUENTIAL], ids=lambda path: path.name)
def test_parts_of_several_gpus(reference: Path, n: int, kind: str, tmp_path: Path) -> None:
    folder = layer_folder(reference, tmp_path / "layers")
    cut(folder, n, parallel=reference == PARALLEL)
    assert len(list(folder.glob("layer_02-*"))) == n
    whole = converted(reference, tmp_path / "whole.gguf", kind)
    assert converted(folder, tmp_path / "joined.gguf", kind, verify=True) == whole


def test_parts_with_folded_rotation_and_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut(layer_folder(PARALLEL, tmp_path / "layers"), 2, parallel=True)
    monkeypatch.setattr("infer_os.convert.blocks._BLOCK_BYTES", 4 * 64 * 3)
    whole = converted(PARALLEL, tmp_path / "whole.gguf", "f32", fold_rotation=True)
    assert converted(folder, tmp_path / "j.gguf", "f32", fold_rotation=True) == whole


def test_padding_behind_the_tokens(tmp_path: Path) -> None:
    folder = cut(layer_folder(PARALLEL, tmp_path / "layers"), 2, parallel=True, padding=10)
    whole = converted(PARALLEL, tmp_path / "whole.gguf", "q8_0")
    assert converted(folder, tmp_path / "joined.gguf", "q8_0") == whole


def test_norms_that_drifted_apart(tmp_path: Path) -> None:
    folder = cut(layer_folder(PARALLEL, tmp_path / "layers"), 2, parallel=True)
    path = folder / "layer_02-model_01-model_states.pt"
    file = TorchFile(path)
    tensors = {name: np.array(file.array(name)) for name in file.tensors}
    file.close()
    before = np.asarray(tensors["input_layernorm.weight"], np.float32)
    tensors["input_layernorm.weight"] = (before + 0.5).astype(np.float32)
    dtype = read_tensors(PARALLEL)["gpt_neox.layers.0.input_layernorm.weight"].dtype
    if dtype != np.float32:
        tensors["input_layernorm.weight"] = (before + 0.5).astype(dtype)
    write_torch(path, tensors)
    converted(folder, tmp_path / "m.gguf", "f32")
    header = read_gguf_header(tmp_path / "m.gguf")
    tensor = next(t for t in header.tensors if t.name == "blk.0.attn_norm.weight")
    assert np.allclose(tensor_array(header, tensor), before + 0.25, atol=1e-3)


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    folder = cut(layer_folder(PARALLEL, tmp_path / "layers"), 2, parallel=True)
    path = folder / "layer_03-model_01-model_states.pt"
    data = path.read_bytes()
    path.unlink()
    refused(folder, tmp_path, SourceError, "layer_03-model_01-model_states.pt is missing")
    path.write_bytes((folder / "layer_00-model_01-model_states.pt").read_bytes())
    refused(folder, tmp_path, FileFormatError, "has other tensors than layer_03-model_00")
    write_torch(path, {name: np.zeros((2, 2), np.float32) for name in TorchFile(
        folder / "layer_03-model_00-model_states.pt").tensors})  # fmt: skip
    refused(folder, tmp_path, FileFormatError, "of shape (2, 2), but in layer_03-model_00")
    path.write_bytes(data[:100])
    refused(folder, tmp_path, FileFormatError, path.name)


def test_an_adapter_on_parts(tmp_path: Path) -> None:
    folder = cut(layer_folder(PARALLEL, tmp_path / "layers"), 2, parallel=True)
    adapter = (AdapterSource(TESTS / "reference/adapters/neox-parallel", 1.0, "a"),)
    whole = converted(PARALLEL, tmp_path / "whole.gguf", "f32", adapters=adapter)
    joined = converted(folder, tmp_path / "joined.gguf", "f32", adapters=adapter)
    assert np.mean(np.frombuffer(whole, np.uint8) != np.frombuffer(joined, np.uint8)) < 1e-3
