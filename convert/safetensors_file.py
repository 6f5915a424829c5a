"""Open one safetensors file: its header checked, its tensors as views of the mapped file.

Format: https://github.com/huggingface/safetensors#format. An 8-byte little-endian header length, a
JSON header, then the tensors' bytes back to back.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_os.json_text import json_fault

from .errors import FileFormatError
from .plain_file import decode, refuse_pointer
from .tensors import MappedFile, StoredTensor, dtype_named

# the reference implementation's bound on the header
_LARGEST_HEADER = 100_000_000


class SafetensorsFile(MappedFile):
    """A mapped safetensors file. Use as a context manager; arrays die with it."""

    def __init__(self, path: Path) -> None:
        """Map the file and check its header.

        Raises:
            FileFormatError: the header is malformed, or a tensor lies outside the file.
        """
        super().__init__(path)
        try:
            entries, self._start = read_entries(path, self._mapped, len(self._mapped))
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, StoredTensor] = {
            name: tensor for name, (tensor, _) in entries.items()
        }
        self._offsets = {name: begin for name, (_, begin) in entries.items()}

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the file; bfloat16 as uint16."""
        tensor = self.tensors[name]
        dtype = dtype_named(tensor.dtype).numpy
        if math.prod(tensor.shape) == 0:
            return np.empty(tensor.shape, dtype)
        flat = np.frombuffer(
            self._mapped, dtype, math.prod(tensor.shape), self._start + self._offsets[name]
        )
        return flat.reshape(tensor.shape)


def read_entries(
    path: Path, head: mmap.mmap | bytes, size: int
) -> tuple[dict[str, tuple[StoredTensor, int]], int]:
    """Check the header of a file of ``size`` bytes that begins with ``head``.

    Returns:
        Every tensor with the offset of its bytes from the start of the data, and that start.

    Raises:
        FileFormatError: the header is malformed, or a tensor lies outside the file.
    """
    header, start = _read_header(path, head, size)
    entries: dict[str, tuple[StoredTensor, int]] = {}
    ends: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor, begin, end = _read_entry(path, name, entry)
        if end > size - start:
            raise FileFormatError(
                f"{path}: tensor {name!r} ends at byte {start + end}, but the file has only "
                f"{size}: it is truncated; download it again"
            )
        entries[name] = tensor, begin
        ends.append((begin, end, name))
    _refuse_overlaps(path, ends)
    return entries, start


def header_end(path: Path, head: mmap.mmap | bytes, size: int) -> int:
    """Where the header of a file of ``size`` bytes ends, from its first 8 bytes.

    Raises:
        FileFormatError: it cannot be a safetensors file.
    """
    refuse_pointer(path, bytes(head[:64]))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(_LARGEST_HEADER, size - 8):
        raise FileFormatError(
            f"{path}: not a safetensors file, or truncated: it has {size} bytes and claims "
            f"a header of {length}"
        )
    return 8 + length


def _read_header(path: Path, head: mmap.mmap | bytes, size: int) -> tuple[dict[str, Any], int]:
    end = header_end(path, head, size)
    try:
        header = json.loads(decode(path, head[8:end]), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: the header is not JSON: {json_fault(error)}") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: the header is not a JSON object")
    return header, end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):  # the format forbids it: readers disagree on which one counts
        raise ValueError("a name occurs twice")
    return value


def _read_entry(path: Path, name: str, entry: Any) -> tuple[StoredTensor, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise FileFormatError(f"{path}: tensor {name!r} has a malformed entry") from error
    if any(type(number) is not int or number < 0 for number in numbers) or begin > end:
        raise FileFormatError(f"{path}: tensor {name!r} has a malformed shape or offset")
    try:
        known = dtype_named(dtype)
    except (KeyError, TypeError):
        raise FileFormatError(f"{path}: tensor {name!r} has the unknown type {dtype!r}") from None
    if math.prod(shape) * known.size != end - begin:
        raise FileFormatError(
            f"{path}: tensor {name!r} of shape {tuple(shape)} and type {dtype} needs "
            f"{math.prod(shape) * known.size} bytes, but the header gives it {end - begin}"
        )
    return StoredTensor(name, known.name, tuple(shape), path), begin, end


def _refuse_overlaps(path: Path, ends: list[tuple[int, int, str]]) -> None:
    ends.sort()
    for (_, end, name), (begin, _, following) in itertools.pairwise(ends):
        if begin < end:
            raise FileFormatError(f"{path}: tensors {name!r} and {following!r} overlap")
