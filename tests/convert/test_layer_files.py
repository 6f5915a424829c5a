"""GPT-NeoX's own files, one per layer: the same model as from Hugging Face's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import PARALLEL, SEQUENTIAL, copy_checkpoint, read_tensors
from torch_writer import write_torch

from infer_os.convert.errors import ConvertError, FileFormatError, PlanError, UnsupportedError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings

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
    refused(folder, tmp_path, UnsupportedError, "every layer is cut into 2 parts")
