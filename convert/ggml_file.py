"""GPT-J in ggml's files from before GGUF: sizes, tokens and tensors, bounded and checked.

Goes in: such a file. Comes out: its tensors under Hugging Face's names, which it has, a config and
its tokens as bytes; nothing is copied. The layout is that of examples/gpt-j of
https://github.com/ggml-org/ggml (convert-h5-to-ggml.py, main.cpp), numbers little-endian:

    u32 magic: 'ggml'; 'ggmf' and 'ggjt' are followed by a u32 version
    i32 n_vocab, n_ctx, n_embd, n_head, n_layer, n_rot, type + 1000 * version of the blocks
    i32 n_vocab; for each token: u32 bytes, the bytes; but in 'ggml' also f32 score
    for each tensor: i32 dimensions, i32 bytes of the name, i32 type, i32 each dimension (the row's
    length first), the name, in 'ggjt' zeros up to a multiple of 32 bytes, the values
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError, UnsupportedError
from .ggml_blocks import BLOCK, OLD_TYPES, VERSIONS, OldBlocks
from .tensors import MappedFile, StoredTensor, dtype_named
from .vocabulary import MOST_TOKENS

_GGML, _GGMF, _GGJT = 0x67676D6C, 0x67676D66, 0x67676A74
_MAGICS = (_GGML, _GGMF, _GGJT)
_SIZES = struct.Struct("<7i")
_ENTRY = struct.Struct("<3i")
_VERSION_FACTOR = 1000
_ALIGNMENT = 32
_FLOATS = {0: "F32", 1: "F16"}
_LONGEST_NAME = 128
_LONGEST_TOKEN = 1 << 12
_LARGEST_SIZE = 1 << 24
#: Of the first converters, whose matrices are transposed, this one shows it.
_SHOWS_ORDER = "mlp.fc_in.weight"


def is_ggml(path: Path) -> bool:
    """Whether a file begins as ggml's files from before GGUF do."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return len(start) == 4 and int.from_bytes(start, "little") in _MAGICS


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    type: int


class GgmlFile(MappedFile):
    """A mapped file. Use as a context manager; arrays die with it.

    ``config`` is what a Hugging Face config would say, ``tokens`` are the texts of the tokens.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check all that stands before values.

        Raises:
            FileFormatError: it is malformed or truncated.
            UnsupportedError: it is of another model, or of a form that is not read.
        """
        super().__init__(path)
        try:
            self._at = 0
            self._read_head()
            self._read_tensors()
        except BaseException:
            self.close()
            raise

    def array(self, name: str) -> NDArray[Any] | OldBlocks:
        """The tensor over the file: an array, or a matrix in blocks."""
        tensor, place = self.tensors[name], self._places[name]
        if place.type in _FLOATS:
            kind = dtype_named(tensor.dtype).numpy
            values = np.frombuffer(self._mapped, kind, math.prod(tensor.shape), place.offset)
            return values.reshape(tensor.shape)
        old = OLD_TYPES[place.type]
        n_rows, width = tensor.shape
        count = n_rows * width // BLOCK
        blocks = np.frombuffer(self._mapped, old.block(self.version), count, place.offset)
        return OldBlocks(blocks.reshape(n_rows, width // BLOCK), old, self.version)

    # ---- reading

    def _take(self, n_bytes: int, what: str) -> bytes:
        end = self._at + n_bytes
        if end > len(self._mapped):
            raise FileFormatError(
                f"{self.path}: it ends within {what}, at byte {len(self._mapped)}: it is "
                "truncated; download it again"
            )
        data = self._mapped[self._at : end]
        self._at = end
        return data

    def _number(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _read_head(self) -> None:
        magic = self._number("its magic number")
        if magic not in _MAGICS:
            raise FileFormatError(f"{self.path}: not a ggml file from before GGUF")
        self._aligns, self._has_scores = magic == _GGJT, magic != _GGML
        container = self._number("its version") if self._has_scores else 0
        if container > (3 if self._aligns else 1):
            raise UnsupportedError(f"{self.path}: version {container} of its kind is not known")
        sizes = _SIZES.unpack(self._take(_SIZES.size, "its sizes"))
        n_vocab, n_ctx, n_embd, n_head, n_layer, n_rot, kind = sizes
        if any(not 0 < size <= _LARGEST_SIZE for size in sizes[:5]) or min(n_rot, kind) < 0:
            raise FileFormatError(f"{self.path}: sizes that no model has: {sizes[:6]}")
        # its three versions are those of the blocks; others say it with the type
        usual = max(0, container - 1) if self._aligns else 0
        self.version = kind // _VERSION_FACTOR or usual
        if self.version not in VERSIONS:
            raise UnsupportedError(
                f"{self.path}: version {self.version} of quantized blocks; known are "
                f"{', '.join(map(str, VERSIONS))}"
            )
        n_tokens = self._number("its vocabulary")
        if n_tokens != n_vocab or n_vocab > MOST_TOKENS:
            raise UnsupportedError(
                f"{self.path}: it says {n_vocab} tokens, then {n_tokens}: not a GPT-J; of ggml's "
                "files from before GGUF, only those of GPT-J are read"
            )
        self.config: dict[str, Any] = {
            "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": n_vocab,
            "n_positions": n_ctx, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer,
            "rotary_dim": n_rot, "tie_word_embeddings": False,
        }  # fmt: skip
        self.tokens = tuple(self._read_token() for _ in range(n_vocab))

    def _read_token(self) -> bytes:
        length = self._number("its vocabulary")
        if length > _LONGEST_TOKEN:
            raise FileFormatError(f"{self.path}: a token of {length} bytes")
        text = self._take(length, "its vocabulary")
        if self._has_scores:
            self._take(4, "its vocabulary")
        return text

    def _read_tensors(self) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self._places: dict[str, _Place] = {}
        while self._at < len(self._mapped):
            tensor, place, n_bytes = self._read_entry()
            if tensor.name in self.tensors:
                raise FileFormatError(f"{self.path}: tensor {tensor.name!r} is there twice")
            self.tensors[tensor.name], self._places[tensor.name] = tensor, place
            if place.offset + n_bytes > len(self._mapped):
                raise FileFormatError(
                    f"{self.path}: tensor {tensor.name!r} ends at byte {place.offset + n_bytes}, "
                    f"but the file has only {len(self._mapped)}: it is truncated; download it again"
                )
            self._at = place.offset + n_bytes

    def _read_entry(self) -> tuple[StoredTensor, _Place, int]:
        n_dims, n_name, kind = _ENTRY.unpack(self._take(_ENTRY.size, "a tensor's entry"))
        if n_dims not in (1, 2) or not 0 < n_name <= _LONGEST_NAME:
            raise FileFormatError(
                f"{self.path}: no tensor begins at byte {self._at - _ENTRY.size}: {n_dims} "
                f"dimensions, a name of {n_name} bytes"
            )
        dims = struct.unpack(f"<{n_dims}i", self._take(4 * n_dims, "a tensor's entry"))
        name = self._take(n_name, "a tensor's entry").decode("ascii", "backslashreplace")
        where = f"{self.path}: tensor {name!r}"
        if any(not 0 < size <= _LARGEST_SIZE for size in dims):
            raise FileFormatError(f"{where} has the dimensions {dims}")
        if self._aligns:
            self._at = -(-self._at // _ALIGNMENT) * _ALIGNMENT
        shape, width = dims[::-1], dims[0]
        if kind in _FLOATS:
            dtype = _FLOATS[kind]
            n_bytes = math.prod(shape) * dtype_named(dtype).size
        elif kind in OLD_TYPES and n_dims == 2 and width % BLOCK == 0:
            dtype = OLD_TYPES[kind].name
            n_bytes = math.prod(shape) // BLOCK * OLD_TYPES[kind].block(self.version).itemsize
        else:
            known = ", ".join(old.name for old in OLD_TYPES.values())
            raise UnsupportedError(
                f"{where}: type {kind} in rows of {width}; read are f32 and f16, and matrices of "
                f"{known} in multiples of {BLOCK}"
            )
        if name.endswith(_SHOWS_ORDER) and shape == (self.config["n_embd"], 4 * shape[0]):
            raise UnsupportedError(
                f"{where} is transposed, as the first converters wrote it in early 2023; take a "
                "later file, or the original model"
            )
        return StoredTensor(name, dtype, shape, self.path), _Place(self._at, kind), n_bytes
