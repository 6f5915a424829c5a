"""Weights that bitsandbytes stored in 8 bits, decoded while they are converted.

Goes in: the tensors of a checkpoint's headers. Comes out: the same without the tensors that hold
scales, and rows of float32. There are two forms, told apart by the tensors beside a weight:

- ``weight`` (int8) and ``SCB``, rows scaled by their largest value (LLM.int8, ``load_in_8bit``):
  ``int8_vectorwise_dequant`` in bitsandbytes/functional.py, ``weight * SCB / 127``.
- ``weight`` (uint8), ``absmax`` and ``code``, 4096 values to a scale (gpt-j-6B-8bit and its kin):
  ``dequantize_blockwise`` there, ``code[weight] * absmax``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError
from .tensors import BLOCKS8, ROWS8, StoredTensor, TensorFile

#: Values that share a scale in the second form.
_BLOCK = 4096
_LARGEST_CODE = 127
_WEIGHT = ".weight"
_BESIDE = {"I8": (ROWS8, ("SCB",)), "U8": (BLOCKS8, ("absmax", "code"))}
#: The layout of the first form's rows: 0 is as they are, others are those of GPU kernels.
_FORMAT = "weight_format"


@dataclass(frozen=True, slots=True)
class EightBit:
    """A matrix in 8 bits; ``scales`` of its rows, or of its blocks, which then have a ``code``."""

    weight: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.float32]
    code: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        rows, columns = self.weight.shape
        return rows, columns

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        return self.rows(wanted)

    def rows(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows in float32."""
        held = self.weight[wanted]
        if self.code is None:
            # in this order, as there: one that is written otherwise rounds otherwise
            scaled: NDArray[np.float32] = held.astype(np.float32) * self.scales[wanted][:, None]
            scaled *= np.float32(1 / _LARGEST_CODE)
            return scaled
        values: NDArray[np.float32] = self.code[held]
        numbers = np.arange(len(self.weight))[wanted]
        width = self.shape[1]
        for row, number in zip(values, numbers, strict=True):
            first, last = number * width, (number + 1) * width
            blocks = self.scales[first // _BLOCK : (last - 1) // _BLOCK + 1]
            row *= np.repeat(blocks, _BLOCK)[first % _BLOCK :][:width]
        return values


def join_eight_bit(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with 8-bit weights as one each, of the types ROWS8 and BLOCKS8.

    Raises:
        FileFormatError: scales of the wrong size, or in another file than their weight.
    """
    joined = dict(tensors)
    for name, tensor in tensors.items():
        kind, beside = _BESIDE.get(tensor.dtype, ("", ()))
        stem = name.removesuffix(_WEIGHT)
        names = [f"{stem}.{part}" for part in beside]
        if not kind or not name.endswith(_WEIGHT) or not all(n in tensors for n in names):
            continue
        sizes = [math.prod(tensors[part].shape) for part in names]
        n_values = math.prod(tensor.shape)
        wanted = [tensor.shape[0]] if kind == ROWS8 else [-(-n_values // _BLOCK), 256]
        if len(tensor.shape) != 2 or sizes != wanted:
            raise FileFormatError(
                f"{tensor.path}: {name} has {sizes} values in {', '.join(beside)}; expected "
                f"{wanted}"
            )
        if any(tensors[part].path != tensor.path for part in names):
            raise FileFormatError(f"{tensor.path}: the scales of {name} are in another file")
        joined[name] = replace(tensor, dtype=kind)
        for part in (*names, f"{stem}.{_FORMAT}"):
            joined.pop(part, None)
    return joined


def without_scales(weight_map: Mapping[str, str]) -> dict[str, str]:
    """An index without the tensors that hold scales of 8-bit weights."""
    parts = (_FORMAT, *(part for _, beside in _BESIDE.values() for part in beside))
    return {
        name: shard for name, shard in weight_map.items()
        if name.rpartition(".")[2] not in parts
        or f"{name.rpartition('.')[0]}{_WEIGHT}" not in weight_map
    }  # fmt: skip


def open_eight_bit(file: TensorFile, name: str) -> EightBit:
    """An 8-bit weight of an open file.

    Raises:
        FileFormatError: its rows are in the order of a GPU's kernel.
    """
    stem = name.removesuffix(_WEIGHT)
    weight = file.array(name)
    if f"{stem}.{_FORMAT}" in file.tensors and np.any(file.array(f"{stem}.{_FORMAT}")):
        raise FileFormatError(
            f"{file.path}: {name} is in a layout of bitsandbytes' GPU kernels; save the model "
            "again with a recent bitsandbytes"
        )
    if weight.dtype == np.int8:
        return EightBit(weight, file.array(f"{stem}.SCB").astype(np.float32).reshape(-1))
    scales = file.array(f"{stem}.absmax").astype(np.float32).reshape(-1)
    return EightBit(weight, scales, file.array(f"{stem}.code").astype(np.float32).reshape(-1))
