"""Write a state dict as torch.save does, in the zip or the legacy format, without torch."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STORAGES = {
    "float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage",
    "bool": "BoolStorage", "int8": "CharStorage", "uint8": "ByteStorage",
}  # fmt: skip


def write_torch(path: Path, tensors: Mapping[str, NDArray[Any]], *, legacy: bool = False) -> None:
    """Write contiguous arrays; uint16 stands for bfloat16."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    items = b"".join(
        _text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(arrays.items())
    )
    data = b"\x80\x02}(" + items + b"u."
    if legacy:
        path.write_bytes(_legacy_head() + data + _legacy_storages(list(arrays.values())))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())


def _legacy_head() -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))


def _legacy_storages(arrays: list[NDArray[Any]]) -> bytes:
    keys = pickle.dumps([str(key) for key in range(len(arrays))], 2)
    return keys + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays)


def _tensor(key: str, array: NDArray[Any]) -> bytes:
    kind = _global("torch", _STORAGES[array.dtype.name])
    storage = _group(_text("storage"), kind, _text(key), _text("cpu"), _int(array.size)) + b"Q"
    strides = (step // array.itemsize for step in array.strides)
    sizes, steps = _group(*map(_int, array.shape)), _group(*map(_int, strides))
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = _group(storage, _int(0), sizes, steps, b"\x89", hooks)
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
