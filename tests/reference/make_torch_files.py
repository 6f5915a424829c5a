"""Write tests/reference/torch_files: small state dicts in every layout that torch.save has.

Run by hand, with torch and safetensors installed: `python tests/reference/make_torch_files.py`.
Beside the .bin files stand safetensors files that hold the same tensors, contiguous and unshared:
`<name>.safetensors` for every `<name>.<layout>.bin`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "torch_files"


def mixed_tensors() -> dict[str, torch.Tensor]:
    """Every element type, and every way in which a tensor can lie in its storage."""
    matrix = torch.randn(6, 5)
    return {
        "f32": matrix,
        "transposed": matrix.t(),
        "rows": matrix[2:4],
        "columns": matrix[:, 1:4],
        "every_other": matrix[::2, ::2],
        "one_row": matrix[5:, :],
        "tied": matrix,
        "expanded": torch.arange(5.0).expand(2, 5),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "f64": torch.randn(3, dtype=torch.float64),
        "f16": torch.randn(4, 3).half(),
        "bf16": torch.randn(4, 3).bfloat16(),
        "i64": torch.arange(-3, 3),
        "i32": torch.arange(4, dtype=torch.int32),
        "i16": torch.arange(4, dtype=torch.int16),
        "i8": torch.arange(-2, 2, dtype=torch.int8),
        "u8": torch.arange(4, dtype=torch.uint8),
        "mask": torch.ones(4, 4, dtype=torch.bool).tril(),
        "scalar": torch.tensor(-1e4),
        "empty": torch.empty(0, 3),
    }


class Tied(torch.nn.Module):
    """A model whose head is its embedding, with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def parameters() -> dict[str, torch.Tensor]:
    """Parameters saved as such, not detached as state_dict() has them; one has an attribute."""
    plain = torch.nn.Parameter(torch.randn(3, 2))
    marked = torch.nn.Parameter(torch.randn(2, 2).half(), requires_grad=False)
    marked.tensor_parallel = {"axis": 0}  # type: ignore[attr-defined]
    return {"plain": plain, "marked": marked}


def write_expected(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """The same tensors as safetensors."""
    copies = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(copies, FOLDER / f"{name}.safetensors")


def write_both(name: str, content: Any) -> None:
    """The zip and the legacy layout."""
    torch.save(content, FOLDER / f"{name}.zip.bin")
    torch.save(content, FOLDER / f"{name}.legacy.bin", _use_new_zipfile_serialization=False)


def main() -> None:
    """Write every file."""
    torch.manual_seed(20)
    FOLDER.mkdir(exist_ok=True)
    mixed = mixed_tensors()
    write_expected("mixed", mixed)
    write_both("mixed", mixed)
    torch.save(mixed, FOLDER / "mixed.protocol4.bin", pickle_protocol=4)
    buffer = io.BytesIO()  # a file without a name: torch calls the folder "archive"
    torch.save(mixed, buffer)
    (FOLDER / "mixed.archive.bin").write_bytes(buffer.getvalue())
    # as Lightning and others write: the state dict among other things
    wrapped = {
        "epoch": 3, "lr": 1e-3, "name": "gpt", "none": None, "steps": [1, 2], "dtype": torch.half,
        "device": torch.device("cpu"), "shape": torch.Size([2, 3]),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "state_dict": mixed,
    }  # fmt: skip
    torch.save(wrapped, FOLDER / "mixed.wrapped.bin")
    # entries that are no tensors, beside tensors
    torch.save({**mixed, "version": 2, "config": {"n_head": 4}}, FOLDER / "mixed.extras.bin")

    module = Tied()
    write_expected("module", module.state_dict())
    write_both("module", module.state_dict())

    held = parameters()
    write_expected("parameters", held)
    write_both("parameters", held)


if __name__ == "__main__":
    main()
