"""Checkpoints and GGUF files for the tests: copied, changed, or written byte by byte."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent

#: Every stored checkpoint with Hugging Face's own logits.
REFERENCES = sorted(path.parent for path in (TESTS / "reference").glob("*/logits.npy"))
PARALLEL = TESTS / "reference" / "neox-parallel"
SEQUENTIAL = TESTS / "reference" / "neox-sequential"

#: The trained models that come with the package, once they are there.
BUNDLED = sorted(p.parent for p in (REPOSITORY / "models" / "bundled").glob("*/config.json"))

Tensors = dict[str, NDArray[Any]]

#: Gives the GGUF of a checkpoint folder in a type (the fixture ``converted``).
Converter = Callable[..., Path]


def small_memory() -> SimpleNamespace:
    """What psutil says of a machine with 64 MB of memory: less than any model takes."""
    return SimpleNamespace(total=64_000_000, available=40_000_000)


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, by the safetensors library."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Replace a checkpoint's weights by one file."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
    )


def write_shards(
    folder: Path, shards: Sequence[Tensors], index: Mapping[str, str] | None = None
) -> None:
    """Replace a checkpoint's weights by shards and their index."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    text = json.dumps({"weight_map": weight_map if index is None else dict(index)})
    (folder / "model.safetensors.index.json").write_text(text)


def write_raw_safetensors(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file with any header: a value to write as JSON, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(source, target))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; ``change`` may edit in place or return another value."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def set_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; a value of ``...`` removes one."""

    def change(config: dict[str, Any]) -> None:
        for key, value in values.items():
            if value is ...:
                config.pop(key, None)
            else:
                config[key] = value

    edit_json(folder / "config.json", change)


# ---- GGUF, written by hand: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def string_key(key: str | bytes, value: str) -> bytes:
    return gguf_string(key) + u32(8) + gguf_string(value)


def u32_key(key: str, value: int) -> bytes:
    return gguf_string(key) + u32(4) + u32(value)


def array_key(key: str, kind: int, count: int, data: bytes) -> bytes:
    return gguf_string(key) + u32(9) + u32(kind) + u64(count) + data


def tensor_entry(
    name: str | bytes,
    shape: Sequence[int],
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    dims = b"".join(u64(n) for n in shape)
    count = len(shape) if n_dims is None else n_dims
    return gguf_string(name) + u32(count) + dims + u32(kind) + u64(offset)


@dataclass
class RawGguf:
    """A GGUF file in parts; counts follow the lists unless they are set."""

    keys: list[bytes] = field(default_factory=lambda: [string_key("general.architecture", "x")])
    tensors: list[bytes] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    data: bytes = b""

    def header(self) -> bytes:
        """Everything before the padding."""
        return b"".join(
            [
                self.magic,
                u32(self.version),
                u64(len(self.tensors) if self.n_tensors is None else self.n_tensors),
                u64(len(self.keys) if self.n_keys is None else self.n_keys),
                *self.keys,
                *self.tensors,
            ]
        )

    def bytes(self) -> bytes:
        """The whole file."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data
