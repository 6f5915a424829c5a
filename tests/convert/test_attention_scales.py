"""GPT-2's attention scales become factors of q: the file is that of weights scaled by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TESTS, copy_checkpoint, read_tensors, set_config, write_tensors
from torch_writer import write_torch

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.gguf_file import read_gguf_header

GPT2 = TESTS / "reference" / "gpt2"
N_HEAD = json.loads((GPT2 / "config.json").read_text())["n_head"]
FLAGS: tuple[dict[str, Any], ...] = (
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
)


def _by_hand(folder: Path, flags: dict[str, Any]) -> None:
    tensors = read_tensors(folder)
    for name, values in tensors.items():
        if ".attn.c_attn." not in name:
            continue
        layer = int(name.split("h.")[1].split(".")[0])
        n_embd = values.shape[-1] // 3
        factor = 1.0
        if not flags.get("scale_attn_weights", True):
            factor *= math.sqrt(n_embd // N_HEAD)
        if flags.get("scale_attn_by_inverse_layer_idx"):
            factor /= layer + 1
        scaled = values.astype(np.float32)
        scaled[..., :n_embd] *= np.float32(factor)
        tensors[name] = scaled
    write_tensors(folder, tensors)


def _data(path: Path) -> dict[str, bytes]:
    header = read_gguf_header(path)
    whole = path.read_bytes()[header.data_offset :]
    return {t.name: whole[t.offset : t.offset + t.n_bytes] for t in header.tensors}


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags))
def test_flags_are_factors_of_q(
    flags: dict[str, Any], rotate: bool, kind: str, tmp_path: Path
) -> None:
    found = []
    for name in ("flags", "hand", "plain"):
        folder = copy_checkpoint(GPT2, tmp_path / name)
        if name == "flags":
            set_config(folder, **flags)
        elif name == "hand":
            _by_hand(folder, flags)
        target = tmp_path / f"{name}.gguf"
        convert(ConvertSettings(folder, target, kind, fold_rotation=rotate))
        found.append(_data(target))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_bin_is_scaled_alike(tmp_path: Path) -> None:
    one, other = (copy_checkpoint(GPT2, tmp_path / name) for name in ("safe", "bin"))
    tensors = read_tensors(other)
    for path in [*other.glob("*.safetensors"), *other.glob("*.index.json")]:
        path.unlink()
    write_torch(other / "pytorch_model.bin", tensors)
    found = []
    for folder in (one, other):
        set_config(folder, **FLAGS[0])
        target = folder.with_suffix(".gguf")
        convert(ConvertSettings(folder, target, "q8_0"))
        found.append(_data(target))
    assert found[0] == found[1]
