"""Put the parts of a model together that llama.cpp's ``gguf-split`` cut into several files.

Goes in: the headers of all parts, in order. Comes out: the header of the whole, and one file that
holds every tensor. The keys ``split.*`` are those of llama.cpp's tools/gguf-split.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

from .errors import GgufError
from .gguf_file import GgufHeader, GgufTensor, padded, read_raw_keys

_PREFIX = "split."
_CHUNK = 8 << 20


def whole_header(parts: Sequence[GgufHeader]) -> GgufHeader:
    """The header of the model that the parts make up; offsets stay those in the parts.

    Raises:
        GgufError: they are not the parts of one model, in order.
    """
    first = parts[0]
    if len(parts) == 1 and first.metadata.get("split.count", 1) == 1:
        return first
    for at, part in enumerate(parts):
        for key, wanted in (("split.count", len(parts)), ("split.no", at)):
            value = part.metadata.get(key)
            if value != wanted:
                raise GgufError(f"{part.path}: {key} is {value!r}; expected {wanted}")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    stated = first.metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors) or len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError(f"{first.path}: its parts hold {len(tensors)} tensors; expected {stated}")
    metadata = {k: v for k, v in first.metadata.items() if not k.startswith(_PREFIX)}
    return replace(
        first,
        file_bytes=sum(part.file_bytes for part in parts),
        metadata=metadata,
        tensors=tensors,
    )


def write_whole(
    parts: Sequence[GgufHeader], output: BinaryIO, progress: Callable[[int], None]
) -> None:
    """Write one file of the tensors of all parts.

    Args:
        parts: as :func:`whole_header` accepts them, of local files.
        output: an empty file.
        progress: called with bytes written.

    Raises:
        GgufError: a part was cut meanwhile.
        OSError: the file cannot be written.
    """
    raw = read_raw_keys(parts[0].path)
    # the first part's alignment is not that of every part
    keys = [
        data for key, data in raw.items()
        if not key.startswith(_PREFIX) and key != "general.alignment"
    ]  # fmt: skip
    placed: list[tuple[GgufHeader, GgufTensor, int]] = []
    end = 0
    for part in parts:
        for tensor in part.tensors:
            placed.append((part, tensor, end))
            end += padded(tensor.n_bytes)
    output.write(b"GGUF" + struct.pack("<IQQ", 3, len(placed), len(keys)))
    output.write(b"".join(keys))
    output.write(b"".join(_entry(tensor, at) for _, tensor, at in placed))
    _pad(output)
    for part in parts:
        with part.path.open("rb") as file:
            for tensor in part.tensors:
                file.seek(part.data_offset + tensor.offset)
                _copy(file, output, tensor, part, progress)
                _pad(output)


def _copy(
    file: BinaryIO,
    output: BinaryIO,
    tensor: GgufTensor,
    part: GgufHeader,
    progress: Callable[[int], None],
) -> None:
    left = tensor.n_bytes
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            raise GgufError(f"{part.path}: it was cut while tensor {tensor.name!r} was read")
        output.write(data)
        left -= len(data)
        progress(len(data))


def _entry(tensor: GgufTensor, offset: int) -> bytes:
    name = tensor.name.encode()
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", tensor.type.id, offset)


def _pad(output: BinaryIO) -> None:
    at = output.tell()
    output.write(bytes(padded(at) - at))
