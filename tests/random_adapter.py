"""Write a LoRA adapter with random values, in PEFT's format, for a checkpoint.

    python tests/random_adapter.py CHECKPOINT FOLDER

Only the checkpoint's config is read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from infer_os.models.architectures import describe
from infer_os.models.network import Role

LAYERS = (Role.ATTN_QKV, Role.ATTN_OUTPUT, Role.FFN_UP, Role.FFN_DOWN)


def random_adapter(
    base: Path,
    folder: Path,
    *,
    rank: int = 5,
    seed: int = 3,
    roles: tuple[Role, ...] = LAYERS,
    deviation: float = 0.3,
) -> Path:
    """An adapter of a checkpoint's matrices; as it is, strong enough to change every text."""
    network = describe(json.loads((base / "config.json").read_text()))
    chance = np.random.default_rng(seed)
    matrices = {}
    for part in (p for rule in network.rules if rule.role in roles for p in rule.parts):
        rows, columns = part.shape[::-1] if part.transform.transposes else part.shape
        name = f"base_model.model.{network.prefixes[0]}{part.source.removesuffix('.weight')}"
        shapes = {"lora_A": (rank, columns), "lora_B": (rows, rank)}
        for kind, shape in shapes.items():
            values = chance.standard_normal(shape, np.float32) * np.float32(deviation)
            matrices[f"{name}.{kind}.weight"] = values
    folder.mkdir()
    save_file(matrices, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    random_adapter(Path(sys.argv[1]), Path(sys.argv[2]), rank=16)
