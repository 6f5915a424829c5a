"""Blocks of 32 values of old ggml files, decoded: before GGUF their formats changed twice.

Goes in: the bytes of a matrix and the version of its format. Comes out: rows of float32. The
layouts are those of ggml.c at each time (quantize_row_* and dequantize_row_*):

- version 0, until May 2023: neighbouring values share a byte; the scales of Q4_0, Q4_1 and Q8_0 are
  float32, those of Q5_0 and Q5_1 float16.
- version 1 (llama.cpp#1405): a byte holds a value of the first half and one of the second.
- version 2 (llama.cpp#1508): all scales are float16. So the blocks are today's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
#: Versions of the formats that are known.
VERSIONS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class OldType:
    """A format of blocks: whole numbers of some bits, less ``zero``, times a scale.

    With a minimum, that is added.
    """

    name: str
    bits: int
    zero: int
    has_minimum: bool = False

    def block(self, version: int) -> np.dtype[np.void]:
        """A block in memory."""
        number = "<f2" if version == VERSIONS[-1] or self.bits == 5 else "<f4"
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [("scale", number)]
        if self.has_minimum:
            fields.append(("minimum", number))
        if self.bits == 5:
            fields.append(("fifth", "<u4"))
        fields.append(("values", "i1", (BLOCK,)) if self.bits == 8 else ("values", "u1", (16,)))
        return np.dtype(fields)

    def decode(self, blocks: NDArray[np.void], version: int) -> NDArray[np.float32]:
        """Blocks of any shape as float32, (..., 32)."""
        values: NDArray[np.float32] = self._whole(blocks, version).astype(np.float32)
        values *= blocks["scale"].astype(np.float32)[..., None]
        if self.has_minimum:
            values += blocks["minimum"].astype(np.float32)[..., None]
        return values

    def _whole(self, blocks: NDArray[np.void], version: int) -> NDArray[np.int16]:
        """The numbers that the scales multiply, (..., 32)."""
        stored = blocks["values"]
        if self.bits == 8:
            return np.asarray(stored, np.int16)
        low, high = stored & 15, stored >> 4
        if version == 0:
            whole = np.stack((low, high), axis=-1).reshape(*stored.shape[:-1], BLOCK)
        else:
            whole = np.concatenate((low, high), axis=-1)
        if self.bits == 5:
            fifth = blocks["fifth"][..., None] >> np.arange(BLOCK, dtype=np.uint32) & 1
            whole |= (fifth << 4).astype(np.uint8)
        wide: NDArray[np.int16] = whole.astype(np.int16) - np.int16(self.zero)
        return wide


#: By the number that a file gives a tensor's type (enum ggml_type).
OLD_TYPES = {
    2: OldType("q4_0", 4, 8),
    3: OldType("q4_1", 4, 0, has_minimum=True),
    6: OldType("q5_0", 5, 16),
    7: OldType("q5_1", 5, 0, has_minimum=True),
    8: OldType("q8_0", 8, 0),
}


@dataclass(frozen=True, slots=True)
class OldBlocks:
    """A matrix in blocks, (n_rows, blocks of a row)."""

    blocks: NDArray[np.void]
    type: OldType
    version: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        n_rows, n_blocks = self.blocks.shape
        return n_rows, n_blocks * BLOCK

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        return self.rows(wanted)

    def rows(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows in float32."""
        decoded = self.type.decode(self.blocks[wanted], self.version)
        return np.ascontiguousarray(decoded).reshape(len(decoded), -1)
