"""Saved states of a KV cache, byte by byte, and rows in the types of gguf's own encoders."""

from __future__ import annotations

import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from infer_os.native.kv_state import KvFormat, KvGeometry, read_layout, reencode_state


def encoded(rows: NDArray[np.float32], name: str) -> bytes:
    return gguf.quants.quantize(rows, Kind[name.upper()]).tobytes()


def decoded(data: bytes, name: str, width: int) -> NDArray[np.float32]:
    kind = Kind[name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = np.frombuffer(data, np.uint8).reshape(-1, width // block * size)
    if name in ("f16", "f32"):
        return (
            np.frombuffer(data, name.replace("f", "<f").replace("16", "2").replace("32", "4"))
            .reshape(-1, width)
            .astype(np.float32)
        )
    return gguf.quants.dequantize(values, kind).astype(np.float32)


def state_of(
    keys: list[bytes], values: list[bytes], types: tuple[str, str], first: int, n: int
) -> NDArray[np.uint8]:
    """A state, byte by byte."""
    data = struct.pack("<IiII", 0xAF143CD8, 0, 1, n)
    data += b"".join(struct.pack("<iIi", first + i, 1, 0) for i in range(n))
    data += struct.pack("<II", 0, len(keys))
    for name, rows in zip(types, (keys, values), strict=True):
        for row in rows:
            data += struct.pack("<iQ", Kind[name.upper()].value, len(row) // n) + row
    return np.frombuffer(data, np.uint8).copy()


def parts(
    state: NDArray[np.uint8], geometry: KvGeometry, form: KvFormat, first: int, n: int
) -> list[bytes]:
    layout = read_layout(state, geometry, form, first, n)
    sizes = form.row_bytes(geometry)
    return [
        state[at : at + n * sizes[i // geometry.n_layer]].tobytes()
        for i, at in enumerate(layout.parts)
    ]


def written(rows: NDArray[np.float32], name: str) -> bytes:
    """Rows as a change of stage from F32 writes them, without a rotation."""
    n, width = rows.shape
    geometry, form = KvGeometry(1, width // 32, 32, 32), KvFormat(name, name)
    assert form.rotations(geometry) == (0, 0)
    state = state_of([rows.tobytes()], [rows.tobytes()], ("f32", "f32"), 0, n)
    before = KvFormat("f32", "f32")
    result = reencode_state(state, geometry, before, form, first=0, n_cells=n)
    keys, values = parts(result, geometry, form, 0, n)
    assert keys == values
    return keys
