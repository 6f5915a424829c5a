"""A sequence's saved KV rows: check their layout and re-encode them from one type to another.

In: the bytes that ``llama_state_seq_get_data`` writes. Out: bytes that ``llama_state_seq_set_data``
accepts in a context with other cache types. The layout is that of the pinned llama.cpp, where a
cache has one stream, flash attention and no multi-part positions (``llama_context::
state_seq_get_data`` in llama-context.cpp, ``llama_kv_cache::state_write`` in llama-kv-cache.cpp);
numbers are little-endian:

    u32 magic, i32 sequence, u32 streams (1), u32 cells
    for each cell: i32 position, u32 sequences (1), i32 sequence
    u32 V transposed (0), u32 layers
    for each layer: i32 type, u64 bytes per row, K rows, one per cell
    for each layer: i32 type, u64 bytes per row, V rows

A quantized K (V) whose head size 64 divides is stored multiplied by a Walsh-Hadamard matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_kv_part
from .errors import StateError
from .ggml_types import GgmlType, ggml_type_named
from .gguf_file import GgufHeader
from .library import load_library

#: Types that a cache can have, from the most precise to the smallest.
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

#: Those that our attention takes: takes_attention of native/src/kernels/attention_op.cpp.
OWN_CACHES = frozenset({"f16", "q8_0", "q4_0"})

_MAGIC = 0xAF143CD8
_HEAD = struct.Struct("<IiII")
_LAYERS = struct.Struct("<II")
_PART = struct.Struct("<iQ")
_CELL_BYTES = 12

#: Bytes of a saved state.
State = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """Sizes of a model's K and V rows: ``n_head_kv`` heads of ``head_k`` and ``head_v`` values."""

    n_layer: int
    n_head_kv: int
    head_k: int
    head_v: int

    @property
    def widths(self) -> tuple[int, int]:
        """Values in a row of K and of V."""
        return self.n_head_kv * self.head_k, self.n_head_kv * self.head_v


@dataclass(frozen=True, slots=True)
class KvFormat:
    """How a cache stores rows. ``rotates``: llama.cpp's own rotation is on."""

    type_k: str
    type_v: str
    rotates: bool = True

    @property
    def types(self) -> tuple[GgmlType, GgmlType]:
        """The types of K and V."""
        return ggml_type_named(self.type_k), ggml_type_named(self.type_v)

    def row_bytes(self, geometry: KvGeometry) -> tuple[int, int]:
        """Bytes of a row of K and of V."""
        width_k, width_v = geometry.widths
        type_k, type_v = self.types
        return type_k.row_bytes(width_k), type_v.row_bytes(width_v)

    def token_bytes(self, geometry: KvGeometry) -> int:
        """Bytes of a token in all layers."""
        return geometry.n_layer * sum(self.row_bytes(geometry))

    def state_bytes(self, geometry: KvGeometry, n_cells: int) -> int:
        """Bytes of a saved state of ``n_cells`` tokens."""
        headers = _HEAD.size + _LAYERS.size + 2 * geometry.n_layer * _PART.size
        return headers + n_cells * (_CELL_BYTES + self.token_bytes(geometry))

    def rotations(self, geometry: KvGeometry) -> tuple[int, int]:
        """Sizes of the matrices that K and V rows are multiplied by; 0 for none.

        ``llama_kv_cache::build_input_k_rot`` and ``build_input_v_rot`` of the pinned version: for K
        the largest power of two that divides a head, for V always 64.
        """
        type_k, type_v = self.types
        turn_k = self.rotates and type_k.quantized and geometry.head_k % 64 == 0
        turn_v = self.rotates and type_v.quantized and geometry.head_v % 64 == 0
        return (geometry.head_k & -geometry.head_k if turn_k else 0, 64 if turn_v else 0)


def kv_geometry(header: GgufHeader) -> KvGeometry:
    """What a file's header says about its K and V rows."""
    n_embd = header.count("embedding_length", 0, low=0)
    # models without attention say 0
    n_head = header.count("attention.head_count", 1, low=0) or 1
    return KvGeometry(
        header.count("block_count", 0, low=0),
        header.count("attention.head_count_kv", n_head, low=0),
        header.count("attention.key_length", n_embd // n_head, low=0),
        header.count("attention.value_length", n_embd // n_head, low=0),
    )


@dataclass(frozen=True, slots=True)
class StateLayout:
    """A checked state: where each layer's rows begin, K of all layers, then V of all layers."""

    n_cells: int
    parts: tuple[int, ...]


def read_layout(
    state: State, geometry: KvGeometry, form: KvFormat, first: int, n_cells: int
) -> StateLayout:
    """Check that a state is exactly what such a context writes for these positions.

    Args:
        state: (n,) the saved bytes.
        geometry: of the model.
        form: of the cache that supposedly wrote it.
        first: position of the first token.
        n_cells: tokens, with consecutive positions.

    Raises:
        StateError: the first thing that differs.
    """
    n_bytes = form.state_bytes(geometry, n_cells)
    _expect("bytes", len(state), n_bytes)
    magic, _sequence, n_streams, n_found = _HEAD.unpack_from(state.data)
    _expect("magic", magic, _MAGIC)
    _expect("streams", n_streams, 1)
    _expect("cells", n_found, n_cells)
    at = _HEAD.size
    cells = state[at : at + n_cells * _CELL_BYTES].view("<i4").reshape(n_cells, 3)
    _expect("sequences of a cell", sorted({int(n) for n in cells[:, 1]}), [1] if n_cells else [])
    if not np.array_equal(cells[:, 0], np.arange(first, first + n_cells, dtype=np.int32)):
        raise StateError(
            f"saved KV state: positions are not {first} to {first + n_cells - 1} in order"
        )
    at += n_cells * _CELL_BYTES
    transposed, n_layer = _LAYERS.unpack_from(state.data, at)
    if transposed:
        raise StateError("saved KV state: V is transposed: flash attention was off")
    _expect("layers", n_layer, geometry.n_layer)
    at += _LAYERS.size
    parts = []
    for part, (kind, row_bytes) in enumerate(_expected_parts(geometry, form)):
        type_id, row_found = _PART.unpack_from(state.data, at)
        where = f"{'KV'[part >= geometry.n_layer]} of layer {part % geometry.n_layer}"
        _expect(f"type of {where}", type_id, kind.id)
        _expect(f"bytes per row of {where}", row_found, row_bytes)
        parts.append(at + _PART.size)
        at += _PART.size + n_cells * row_bytes
    return StateLayout(n_cells, tuple(parts))


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise StateError(f"saved KV state: {what}: {found}, expected {expected}")


def _expected_parts(geometry: KvGeometry, form: KvFormat) -> Iterator[tuple[GgmlType, int]]:
    for kind, row_bytes in zip(form.types, form.row_bytes(geometry), strict=True):
        for _ in range(geometry.n_layer):
            yield kind, row_bytes


_REFUSALS: Final = {
    Status.BAD_TYPE: "a type that no KV cache has",
    Status.BAD_SHAPE: "rows that the types' blocks or the rotation do not divide",
    Status.NO_MEMORY: "not enough memory",
}


def reencode_state(
    state: State,
    geometry: KvGeometry,
    source: KvFormat,
    target: KvFormat,
    *,
    first: int,
    n_cells: int,
    n_threads: int = 1,
) -> State:
    """The same tokens as a cache of another format would save them.

    Args:
        state: (n,) what a cache of format ``source`` saved; not changed.
        geometry: of the model.
        source: of the cache that wrote it.
        target: of the cache that will read it.
        first: position of the first token.
        n_cells: tokens, with consecutive positions.
        n_threads: threads to use; each takes a float32 row as scratch.

    Raises:
        StateError: ``state`` is not what such a cache writes, or the types do not fit the rows.
    """
    old = read_layout(state, geometry, source, first, n_cells)
    result = np.empty(target.state_bytes(geometry, n_cells), np.uint8)
    at = _HEAD.size + n_cells * _CELL_BYTES + _LAYERS.size
    result[:at] = state[:at]
    widths, turns = geometry.widths, (source.rotations(geometry), target.rotations(geometry))
    parts = (inferos_kv_part * (2 * geometry.n_layer))()
    for i, (kind, row_bytes) in enumerate(_expected_parts(geometry, target)):
        which = int(i >= geometry.n_layer)
        _PART.pack_into(result.data, at, kind.id, row_bytes)
        at += _PART.size
        parts[i] = inferos_kv_part(
            state.ctypes.data + old.parts[i], result.ctypes.data + at, n_cells, widths[which],
            source.types[which].id, kind.id, turns[0][which], turns[1][which],
        )  # fmt: skip
        at += n_cells * row_bytes
    status = load_library().inferos_kv_reencode(parts, len(parts), n_threads)
    if status != 0:
        reason = _REFUSALS.get(status, f"status {status}")
        raise StateError(
            f"KV rows from {source.type_k}/{source.type_v} to {target.type_k}/{target.type_v}: "
            f"{reason}"
        )
    return result


def join_states(
    states: Iterable[State], geometry: KvGeometry, form: KvFormat, n_tokens: int, n_streams: int = 1
) -> State:
    """The state of ``n_tokens`` tokens from position 0 on, of the states of runs of them in order.

    It is one for a cache of ``n_streams`` streams, of which the sequence is in one; llama.cpp puts
    it into the one of the sequence that reads it.

    Raises:
        StateError: a state is not what such a cache writes, or they have other tokens in all.
    """
    joined, starts = _new_state(geometry, form, 0, n_tokens, n_streams)
    first = 0
    for state in states:
        n_cells = _HEAD.unpack_from(state.data)[3] if len(state) >= _HEAD.size else 0
        layout = read_layout(state, geometry, form, first, n_cells)
        _expect("tokens", min(first + n_cells, n_tokens), first + n_cells)
        for at, start, row_bytes in zip(
            layout.parts, starts, _row_bytes(geometry, form), strict=True
        ):
            size, target = n_cells * row_bytes, start + first * row_bytes
            joined[target : target + size] = state[at : at + size]
        first += n_cells
    _expect("tokens", first, n_tokens)
    return joined


def cut_state(
    state: State, geometry: KvGeometry, form: KvFormat, n_tokens: int, size: int
) -> Iterator[State]:
    """The states of runs of ``size`` tokens, the last of fewer; :func:`join_states` undoes it.

    Raises:
        StateError: ``state`` is not what such a cache writes of its first ``n_tokens`` tokens.
    """
    layout = read_layout(state, geometry, form, 0, n_tokens)
    for first in range(0, n_tokens, size):
        n_cells = min(size, n_tokens - first)
        piece, starts = _new_state(geometry, form, first, n_cells)
        for at, start, row_bytes in zip(
            layout.parts, starts, _row_bytes(geometry, form), strict=True
        ):
            begin, n_bytes = at + first * row_bytes, n_cells * row_bytes
            piece[start : start + n_bytes] = state[begin : begin + n_bytes]
        yield piece


def _row_bytes(geometry: KvGeometry, form: KvFormat) -> list[int]:
    return [row_bytes for _, row_bytes in _expected_parts(geometry, form)]


def _new_state(
    geometry: KvGeometry, form: KvFormat, first: int, n_cells: int, n_streams: int = 1
) -> tuple[State, list[int]]:
    """A state without rows yet, and where those of its parts begin."""
    n_bytes, rest = form.state_bytes(geometry, n_cells), (n_streams - 1) * _COUNT
    state = np.empty(n_bytes + rest, np.uint8)
    state[n_bytes:] = 0  # the other streams have no cells
    _HEAD.pack_into(state.data, 0, _MAGIC, 0, n_streams, n_cells)
    at = _HEAD.size
    cells = state[at : at + n_cells * _CELL_BYTES].view("<i4").reshape(n_cells, 3)
    cells[:, 0] = np.arange(first, first + n_cells, dtype=np.int32)
    cells[:, 1:] = 1, 0
    at += n_cells * _CELL_BYTES
    _LAYERS.pack_into(state.data, at, 0, geometry.n_layer)
    at += _LAYERS.size
    starts = []
    for kind, row_bytes in _expected_parts(geometry, form):
        _PART.pack_into(state.data, at, kind.id, row_bytes)
        starts.append(at + _PART.size)
        at += _PART.size + n_cells * row_bytes
    return state, starts


# ---- a cache of several streams, one for each sequence

_COUNT = 4
_BEFORE_COUNTS = _HEAD.size - _COUNT


def of_one_stream(state: State, n_streams: int, stream: int) -> State:
    """What a cache of one stream would have saved of a sequence of a cache of several.

    Each stream has a number of cells: 0, and nothing else, where the sequence is not in it. The
    result is a part of ``state``, which is changed.

    Raises:
        StateError: the state is not one of such a cache.
    """
    _expect("a whole header", len(state) >= _HEAD.size + (n_streams - 1) * _COUNT, True)
    magic, sequence, n_found, _ = _HEAD.unpack_from(state.data)
    _expect("streams", n_found, n_streams)
    before = _BEFORE_COUNTS + stream * _COUNT
    after = len(state) - (n_streams - 1 - stream) * _COUNT
    others = state[_BEFORE_COUNTS:before].any() or state[after:].any()
    _expect("cells of other sequences", bool(others), False)
    part = state[before - _BEFORE_COUNTS : after]
    _HEAD.pack_into(part.data, 0, magic, sequence, 1, int(part[_BEFORE_COUNTS:][:4].view("<u4")[0]))
    return part
