"""Join the parts into which a layer of GPT-NeoX was cut, one for each of several GPUs.

Goes in: a tensor's part on each GPU, in their order. Comes out: the tensor. The rules are those of
tools/ckpts/convert_neox_to_hf.py and merge20b.py in https://github.com/EleutherAI/gpt-neox:

- What makes many values of few (q, k and v by heads, the wide layer, embedding and head by tokens)
  is cut by rows, weights and biases alike.
- What makes few values of many is cut by columns. The sums over the GPUs are added up. Where
  attention and feed-forward are parallel, each GPU has added a bias of its own before that, and the
  bias is their sum (issue 962 there). Where they are sequential, the sum is formed first
  (``parallel_output`` in megatron/model/transformer.py) and one bias, equal on all GPUs, is added
  to it; the scripts add up the biases here too, which would count it once for each GPU.
- Norms are on every GPU; they may have drifted apart, and the mean is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import widened
from .decoded import DecodedMatrix
from .errors import FileFormatError
from .tensors import WEIGHT_DTYPES, StoredTensor

#: The type of a matrix that is joined as its rows are taken; no file states it.
JOINED = "parts of several GPUs"


@dataclass(frozen=True, slots=True)
class Joint:
    """How the ``n`` parts of a model are joined.

    ``parallel``: whether attention and feed-forward are. ``n_vocab`` rows of the embedding are
    tokens; there may be others behind them, so that each GPU has as many. 0 is for all.
    """

    n: int
    parallel: bool
    n_vocab: int


class _Way(Enum):
    ROWS = "rows"
    TOKENS = "rows, of which the last may be padding"
    COLUMNS = "columns"
    SUM = "sum"
    MEAN = "mean"
    FIRST = "the same everywhere"


_LAYER = r"gpt_neox\.layers\.\d+\."
_WAYS = tuple(
    (re.compile(pattern), way)
    for pattern, way in (
        (rf"{_LAYER}(attention\.query_key_value|mlp\.dense_h_to_4h)\.(weight|bias)", _Way.ROWS),
        (r"gpt_neox\.embed_in\.weight|embed_out\.weight", _Way.TOKENS),
        (rf"{_LAYER}(attention\.dense|mlp\.dense_4h_to_h)\.weight", _Way.COLUMNS),
        (rf"{_LAYER}(attention\.dense|mlp\.dense_4h_to_h)\.bias", _Way.SUM),
        (rf"({_LAYER}\w+_layernorm|gpt_neox\.final_layer_norm)\.(weight|bias)", _Way.MEAN),
    )
)


def joint_of(n_parts: int, config: Mapping[str, Any]) -> Joint:
    """How a checkpoint's parts are joined, by its config; whose values are checked elsewhere."""
    n_vocab = config.get("vocab_size")
    if not isinstance(n_vocab, int) or isinstance(n_vocab, bool) or n_vocab < 1:
        n_vocab = 0
    parallel = config.get("use_parallel_residual")
    return Joint(n_parts, parallel is None or bool(parallel), n_vocab)


def join_parts(parts: Sequence[StoredTensor], joint: Joint) -> StoredTensor:
    """A tensor's entry from those of its parts.

    Raises:
        FileFormatError: parts of different shapes or types.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise FileFormatError(
                f"{part.path}: {part.name} is {part.dtype} of shape {part.shape}, but in "
                f"{first.path.name} {first.dtype} of {first.shape}"
            )
    way = _way_of(first.name)
    if way is _Way.FIRST or first.dtype not in WEIGHT_DTYPES:
        return first
    axis = {_Way.ROWS: 0, _Way.TOKENS: 0, _Way.COLUMNS: 1}.get(way)
    if axis is None:
        return replace(first, dtype="F32")
    if len(first.shape) <= axis:
        raise FileFormatError(f"{first.path}: {first.name} has shape {first.shape}")
    shape = list(first.shape)
    shape[axis] *= joint.n
    if way is _Way.TOKENS and joint.n_vocab and joint.n_vocab < shape[0]:
        shape[0] = joint.n_vocab
    return replace(first, shape=tuple(shape), dtype=JOINED if len(shape) == 2 else first.dtype)


def values_of(
    name: str, parts: Sequence[NDArray[Any]], joint: Joint
) -> NDArray[Any] | DecodedMatrix:
    """A tensor's values from those of its parts, whose entries :func:`join_parts` has taken."""
    way = _way_of(name)
    if way is _Way.FIRST:
        return parts[0]
    if way is _Way.SUM and joint.parallel:
        return np.asarray(sum(map(widened, parts)), np.float32)
    if way in (_Way.SUM, _Way.MEAN):
        # of equal values exactly that value, which a sum of thirds would not be
        mean = sum(widened(part).astype(np.float64) for part in parts) / joint.n
        return np.asarray(mean, np.float32)
    if parts[0].ndim != 2:
        return np.concatenate(list(parts))
    if way is _Way.COLUMNS:
        return JoinedColumns(tuple(parts))
    n_rows = sum(len(part) for part in parts)
    if way is _Way.TOKENS and joint.n_vocab:
        n_rows = min(n_rows, joint.n_vocab)
    return JoinedRows(tuple(parts), n_rows)


@dataclass(frozen=True)
class JoinedRows:
    """Matrices of as many rows each, one below the other: a :class:`~.decoded.DecodedMatrix`."""

    parts: tuple[NDArray[Any], ...]
    n_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        return self.n_rows, self.parts[0].shape[1]

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        """Some rows in float32."""
        return self.rows(wanted)

    def rows(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows in float32, in any order."""
        if isinstance(wanted, slice):
            wanted = np.arange(*wanted.indices(self.n_rows), dtype=np.int64)
        height = len(self.parts[0])
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(wanted // height == number)
            found[here] = widened(part[wanted[here] - number * height])
        return found


@dataclass(frozen=True)
class JoinedColumns:
    """Matrices side by side, likewise."""

    parts: tuple[NDArray[Any], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        return len(self.parts[0]), sum(part.shape[1] for part in self.parts)

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        """Some rows in float32."""
        return self.rows(wanted)

    def rows(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows in float32, in any order."""
        return np.concatenate([widened(part[wanted]) for part in self.parts], axis=1)


def _way_of(name: str) -> _Way:
    return next((way for pattern, way in _WAYS if pattern.fullmatch(name)), _Way.FIRST)
