"""A GGUF file taken apart, to be changed and written again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from helpers import RawGguf, array_key, gguf_string, tensor_entry, u32

_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


@dataclass
class Key:
    """A value of the metadata; ``kind`` is that of an array's values if ``is_array``."""

    kind: int
    value: Any
    is_array: bool = False

    def data(self, name: str) -> bytes:
        """As the file has it."""
        values = self.value if self.is_array else [self.value]
        if self.kind == STRING:
            data = b"".join(map(gguf_string, values))
        else:
            data = struct.pack(f"<{len(values)}{_FORMATS[self.kind]}", *values)
        if self.is_array:
            return array_key(name, self.kind, len(values), data)
        return gguf_string(name) + u32(self.kind) + data


@dataclass
class Tensor:
    """A tensor; ``shape`` as ggml has it. Its bytes are repeated or cut to fit its type."""

    name: str
    shape: list[int]
    kind: int
    data: bytes

    @property
    def fitting(self) -> bytes:
        """Bytes of the size that shape and type ask for."""
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(self.kind)]
        n_values = 1
        for n in self.shape:
            n_values *= n
        n_bytes = n_values // block * size
        return (self.data * (n_bytes // max(1, len(self.data)) + 1))[:n_bytes]


@dataclass
class GgufParts:
    """Keys by name, tensors in the file's order."""

    keys: dict[str, Key]
    tensors: list[Tensor]

    @classmethod
    def read(cls, path: Path) -> GgufParts:
        """Take a file apart."""
        reader = gguf.GGUFReader(path)
        keys = {}
        for name, field in reader.fields.items():
            if name.startswith("GGUF."):
                continue
            is_array = field.types[0] == ARRAY
            value = field.contents()
            keys[name] = Key(int(field.types[-1]), value, is_array)
        tensors = [
            Tensor(t.name, [int(n) for n in t.shape], int(t.tensor_type), t.data.tobytes())
            for t in reader.tensors
        ]
        return cls(keys, tensors)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def write(self, path: Path) -> Path:
        """Lay the file out."""
        data, entries = b"", []
        for tensor in self.tensors:
            entries.append(tensor_entry(tensor.name, tensor.shape, tensor.kind, len(data)))
            data += tensor.fitting
            data += bytes(-len(data) % 32)
        keys = [key.data(name) for name, key in self.keys.items()]
        path.write_bytes(RawGguf(keys=keys, tensors=entries, data=data).bytes())
        return path
