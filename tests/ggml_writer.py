"""Write old ggml files of GPT-J, field by field, as examples/gpt-j of ggml does."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from helpers import TESTS, read_tensors
from numpy.typing import NDArray

GPTJ = TESTS / "reference" / "gptj"
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
Entry = tuple[str, tuple[int, ...], int, bytes]


@dataclass
class OldFile:
    """A file's parts; ``tensors`` are (name, shape, type, bytes)."""

    tensors: list[Entry] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)
    magic: bytes = b"lmgg"
    container: int | None = None
    n_tokens: int | None = None

    def bytes(self) -> bytes:
        """The file."""
        data = self.magic
        if self.container is not None:
            data += struct.pack("<I", self.container)
        n_tokens = len(self.tokens) if self.n_tokens is None else self.n_tokens
        data += struct.pack("<7i", *self.sizes) + struct.pack("<i", n_tokens)
        for token in self.tokens:
            data += struct.pack("<I", len(token)) + token
            data += struct.pack("<f", -1.0) if self.container is not None else b""
        for name, shape, kind, values in self.tensors:
            data += struct.pack("<3i", len(shape), len(name), kind)
            data += struct.pack(f"<{len(shape)}i", *shape[::-1]) + name.encode()
            if self.magic == b"tjgg":
                data += bytes(-len(data) % 32)
            data += values
        return data


def token_texts() -> list[bytes]:
    """The reference's tokens, as the converter wrote them."""
    tokenizer = json.loads((GPTJ / "tokenizer.json").read_text())
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in kept}
    letters |= {chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in kept)}
    by_id = {i: bytes(map(letters.__getitem__, t)) for t, i in tokenizer["model"]["vocab"].items()}
    by_id |= {t["id"]: t["content"].encode() for t in tokenizer["added_tokens"]}
    return [by_id[i] for i in range(len(by_id))]


def gptj(kind: str, *, version: int = 2) -> OldFile:
    """The reference checkpoint as an old file whose matrices are of that type."""
    entries: list[Entry] = []
    for name, values in read_tensors(GPTJ).items():
        if name.endswith(("attn.bias", "masked_bias")):
            continue
        wide = values.astype(np.float32)
        if wide.ndim == 1 or kind == "f32":
            entries.append((name, wide.shape, 0, wide.tobytes()))
        elif kind == "f16":
            entries.append((name, wide.shape, 1, wide.astype("<f2").tobytes()))
        else:
            entries.append((name, wide.shape, TYPES[kind], blocks(wide, kind).tobytes()))
    config = json.loads((GPTJ / "config.json").read_text())
    n_vocab, tokens = config["vocab_size"], token_texts()
    tokens += [f"<|extra_{i}|>".encode() for i in range(n_vocab - len(tokens))]
    ftype = TYPES[kind] + 1000 * version
    sizes = [n_vocab, config["n_positions"], config["n_embd"], config["n_head"],
             config["n_layer"], config["rotary_dim"], ftype]  # fmt: skip
    return OldFile(entries, sizes, tokens)


def blocks(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """A matrix in today's blocks, by gguf's quantizer."""
    return quantize(values, GGMLQuantizationType[kind.upper()])


def write(path: Path, file: OldFile) -> Path:
    """Write it."""
    path.write_bytes(file.bytes())
    return path
