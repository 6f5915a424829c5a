"""What every container format offers: named, typed tensors, as arrays over the mapped file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Dtype:
    """A stored element type: its safetensors name, bytes, and the numpy type that carries it."""

    name: str
    size: int
    numpy: np.dtype[Any]


_DTYPES = {
    name: Dtype(name, np.dtype(carrier).itemsize, np.dtype(carrier))
    for name, carrier in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2",
        "BF16": "<u2",  # numpy has no bfloat16: its bits
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip

#: The types that weights may have.
WEIGHT_DTYPES = ("F32", "F16", "BF16")


def dtype_named(name: str) -> Dtype:
    """The type of that safetensors name.

    Raises:
        KeyError: no such type.
    """
    return _DTYPES[name]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a header describes it: nothing is read yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path


class TensorFile(Protocol):
    """One open file of a checkpoint."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """What the header lists, by name."""
        ...

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only array (any strides); bfloat16 as uint16."""
        ...

    def close(self) -> None:
        """Let the file go."""
        ...
