"""Open one torch `.bin` file: its pickle checked, its tensors as views of the mapped file.

In: a state dict as torch.save writes it, in the zip format (torch 1.6 and later) or the legacy
format (before, and in many published checkpoints). Out: as `SafetensorsFile`. Neither torch nor
pickle is run: see restricted_pickle.py.

Layouts, from torch/serialization.py:
- zip (`_save`): stored entries `<root>/data.pkl`, `<root>/byteorder`, `<root>/data/<key>`.
- legacy (`_legacy_save`): four pickles (magic number, protocol version, system, the state dict), a
  pickled list of storage keys, then for each key an int64 element count and the elements,
  little-endian.
"""

from __future__ import annotations

import io
import itertools
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError
from .restricted_pickle import (
    ADVICE,
    LARGEST_PICKLE,
    StorageRecord,
    TensorRecord,
    Unpickled,
    read_pickle,
)
from .tensors import MappedFile, StoredTensor, dtype_named

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_DIRECTORY = 16 << 20  # of a zip; a real one has about 100 bytes for a tensor
_MOST_DIMENSIONS = 32
# what zipfile raises for various defects
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error)
_LARGEST_NUMBER = 2**63 - 1
# Keys under which a training checkpoint may hold its state dict.
_WRAPPERS = ("state_dict", "model_state_dict")

# The byte at which a storage begins, once it is known to lie in the file.
_Locate = Callable[[StorageRecord], int]


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's place in the file: the byte of its first element, and its strides in bytes."""

    start: int
    strides: tuple[int, ...]


class TorchFile(MappedFile):
    """A mapped torch file. Use as a context manager; arrays die with it."""

    def __init__(self, path: Path) -> None:
        """Map the file, read its pickle and check every tensor.

        Raises:
            FileFormatError: the file is malformed or truncated, a tensor lies outside its storage
                or the file, or the pickle has content that no state dict needs.
        """
        super().__init__(path)
        self.tensors: dict[str, StoredTensor] = {}
        self._places: dict[str, _Place] = {}
        try:
            unpickled, locate = _read_container(path, self._mapped)
            for name, record in _find_tensors(path, unpickled.value).items():
                strides = _check_tensor(path, name, record, len(self._mapped))
                dtype = record.storage.dtype
                first = (record.storage.first + record.offset) * dtype_named(dtype).size
                self._places[name] = _Place(locate(record.storage) + first, strides)
                self.tensors[name] = StoredTensor(name, dtype, record.shape, path)
        except BaseException:
            self.close()
            raise

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the file; bfloat16 as uint16.

        It may have any strides, and any alignment: the formats promise none.
        """
        tensor, place = self.tensors[name], self._places[name]
        dtype = dtype_named(tensor.dtype).numpy
        if math.prod(tensor.shape) == 0:
            return np.empty(tensor.shape, dtype)
        # frombuffer keeps the map from closing under the array; ndarray alone does not
        held = np.frombuffer(self._mapped, np.uint8)
        array: NDArray[Any]
        array = np.ndarray(tensor.shape, dtype, held, place.start, place.strides)
        return array


def _read_container(path: Path, mapped: mmap.mmap) -> tuple[Unpickled, _Locate]:
    if mapped[:4] == b"PK\3\4":
        archive = _ZipArchive(path, mapped)
        return archive.read_state_dict(), archive.locate
    if mapped[:1] == b"\x80":
        return _read_legacy(path, mapped)
    if mapped[257:262] == b"ustar":
        raise FileFormatError(f"{path}: the tar format of torch before 0.2 is not read; {ADVICE}")
    raise FileFormatError(
        f"{path}: not a torch file: it begins with {mapped[:8]!r}, neither a zip archive nor a "
        "pickle; download it again"
    )


def _find_tensors(path: Path, content: Any) -> dict[str, TensorRecord]:
    """The named tensors of a state dict; whatever else it holds is not weights."""
    tensors = _select_tensors(content)
    if not tensors and isinstance(content, dict):
        wrapped = {name: content[name] for name in _WRAPPERS if name in content}
        if len(wrapped) > 1:
            raise FileFormatError(f"{path}: holds more than one state dict: {list(wrapped)}")
        for inner in wrapped.values():
            tensors = _select_tensors(inner)
    if not tensors:
        held = [name[:60] for name in list(content)[:5]] if isinstance(content, dict) else None
        found = f"a dictionary of {held}" if held else f"a value of type {type(content).__name__}"
        raise FileFormatError(
            f"{path}: not a state dict: no tensors in it, or in its {' or '.join(_WRAPPERS)}, only "
            f"{found}; save the state dict alone"
        )
    return tensors


def _select_tensors(content: Any) -> dict[str, TensorRecord]:
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, TensorRecord)}


def _check_tensor(path: Path, name: str, record: TensorRecord, file_size: int) -> tuple[int, ...]:
    """The tensor's strides in bytes, once every element is known to lie in its storage."""
    where = f"{path}: tensor {name[:200]!r}"
    shape, stride, storage = record.shape, record.stride, record.storage
    if len(shape) > _MOST_DIMENSIONS or len(shape) != len(stride):
        raise FileFormatError(
            f"{where} has {len(shape)} dimensions and {len(stride)} strides; {ADVICE}"
        )
    numbers = (record.offset, *shape, *stride)
    if not all(type(n) is int and 0 <= n <= _LARGEST_NUMBER for n in numbers):
        raise FileFormatError(f"{where} has a malformed offset, shape or stride; {ADVICE}")
    size = dtype_named(storage.dtype).size
    if 0 in shape:
        # numpy bounds the other dimensions of an empty array too
        if math.prod(n for n in shape if n) * size > _LARGEST_NUMBER:
            raise FileFormatError(f"{where} has the shape {shape}, which is too large; {ADVICE}")
        return (size,) * len(shape)
    last = record.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if last >= storage.count:
        raise FileFormatError(
            f"{where} reaches element {last} of a storage of {storage.count}: shape {shape}, "
            f"stride {stride}, offset {record.offset}; download it again, or {ADVICE}"
        )
    # A stride of 0 repeats elements: a few bytes could claim to be any number of them.
    if math.prod(shape) * size > file_size:
        raise FileFormatError(
            f"{where} of shape {shape} is larger than the whole file of {file_size} bytes; {ADVICE}"
        )
    # the stride of a dimension of 1 is never used, and may be anything
    return tuple(step * size if n > 1 else size for n, step in zip(shape, stride, strict=True))


class _DirectoryReader(io.FileIO):
    """A bounded file for zipfile, which reads a directory of any size that the archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _LARGEST_DIRECTORY + 1
        data = super().read(min(size, _LARGEST_DIRECTORY + 1)) or b""
        if len(data) > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("the central directory is too large")
        return data


class _ZipArchive:
    """The entries of a zip file, as ranges of the mapped file."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.mapped = mapped
        try:
            with _DirectoryReader(path) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except _ZIP_ERRORS as error:
            raise FileFormatError(
                f"{path}: the zip directory at its end cannot be read ({error}): the file is "
                "truncated or damaged; download it again"
            ) from error
        self.entries = {entry.orig_filename: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise FileFormatError(f"{path}: two entries of the zip file have the same name")
        roots = [name[:-9] for name in self.entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise FileFormatError(
                f"{path}: a zip file with {len(roots)} entries named data.pkl: not one that "
                f"torch.save wrote; {ADVICE}"
            )
        self.root = roots[0]
        self.starts: dict[str, int] = {}

    def read_state_dict(self) -> Unpickled:
        """The unpickled data.pkl, once the archive is known to be a little-endian state dict."""
        if f"{self.root}/constants.pkl" in self.entries:
            raise FileFormatError(f"{self.path}: a TorchScript program, not a state dict; {ADVICE}")
        if f"{self.root}/byteorder" in self.entries:
            order = self.read("byteorder", 16)
            if order != b"little":
                raise FileFormatError(
                    f"{self.path}: its byte order is {order.decode('ascii', 'replace')!r}, not "
                    f"'little'; {ADVICE}"
                )
        data = self.read("data.pkl", LARGEST_PICKLE)
        unpickled = read_pickle(f"{self.path}: {self.root}/data.pkl", data)
        self.place_storages(unpickled)
        return unpickled

    def locate(self, storage: StorageRecord) -> int:
        """The byte where the storage's elements begin."""
        return self.starts[storage.key]

    def place_storages(self, unpickled: Unpickled) -> None:
        """Find every storage in the file, and refuse those that share bytes."""
        extents = []
        for storage in unpickled.storages.values():
            start, size = self.find(f"data/{storage.key}")
            item = dtype_named(storage.dtype).size
            # the size is in bytes and need not be a whole number of elements
            if not 0 <= size - storage.numel * item < item:
                raise FileFormatError(
                    f"{self.path}: storage {storage.key[:200]!r} needs {storage.numel * item} "
                    f"bytes, but the zip file gives it {size}; download it again"
                )
            self.starts[storage.key] = start
            extents.append((start, start + size, storage.key))
        extents.sort()
        for (_, end, key), (begin, _, following) in itertools.pairwise(extents):
            if begin < end:
                raise FileFormatError(
                    f"{self.path}: storages {key[:200]!r} and {following[:200]!r} overlap"
                )

    def read(self, name: str, largest: int) -> bytes:
        """A small entry's bytes."""
        start, size = self.find(name)
        if size > largest:
            raise FileFormatError(
                f"{self.path}: {self.root}/{name} has {size} bytes, of {largest} allowed; {ADVICE}"
            )
        return self.mapped[start : start + size]

    def find(self, name: str) -> tuple[int, int]:
        """Where an entry's bytes begin and how many: checked to be in the file and stored raw."""
        full = f"{self.root}/{name}"
        where = f"{self.path}: entry {full[:200]!r} of the zip file"
        entry = self.entries.get(full)
        if entry is None:
            raise FileFormatError(f"{where} is missing; download it again")
        stored = (
            entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        )
        if not stored or entry.flag_bits & 1:
            raise FileFormatError(
                f"{where} is compressed or encrypted; save it with torch.save, or {ADVICE}"
            )
        # the local header: 30 bytes, the name, an extra field of its own (APPNOTE.TXT, 4.3.7)
        header = entry.header_offset
        inside = 0 <= header <= len(self.mapped) - 30
        if not inside or self.mapped[header : header + 4] != b"PK\3\4":
            raise FileFormatError(f"{where} has no header at byte {header}; download it again")
        name_size, extra_size = struct.unpack_from("<HH", self.mapped, header + 26)
        local_name = self.mapped[header + 30 : header + 30 + name_size]
        encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
        if local_name.decode(encoding, "replace") != full:
            raise FileFormatError(f"{where} has another name in its header; download it again")
        start = header + 30 + name_size + extra_size
        if not 0 <= entry.file_size <= len(self.mapped) - start:
            raise FileFormatError(
                f"{where} ends at byte {start + entry.file_size}, but the file has only "
                f"{len(self.mapped)}: it is truncated or damaged; download it again"
            )
        return start, entry.file_size


def _read_legacy(path: Path, mapped: mmap.mmap) -> tuple[Unpickled, _Locate]:
    magic = read_pickle(f"{path}: the magic number", mapped)
    if type(magic.value) is not int or magic.value != _MAGIC:
        raise FileFormatError(f"{path}: a pickle, but not one that torch.save wrote; {ADVICE}")
    protocol = read_pickle(f"{path}: the protocol version", mapped, magic.end)
    if type(protocol.value) is not int or protocol.value != _PROTOCOL:
        raise FileFormatError(f"{path}: not protocol version {_PROTOCOL} of torch.save; {ADVICE}")
    system = read_pickle(f"{path}: the system record", mapped, protocol.end)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise FileFormatError(f"{path}: not written on a little-endian machine; {ADVICE}")
    unpickled = read_pickle(f"{path}: the state dict", mapped, system.end)
    keys = read_pickle(f"{path}: the list of storages", mapped, unpickled.end)
    starts = _find_legacy_storages(path, mapped, keys, unpickled.storages)

    def locate(storage: StorageRecord) -> int:
        if storage.key not in starts:
            raise FileFormatError(
                f"{path}: storage {storage.key[:200]!r} is not in the file; download it again"
            )
        return starts[storage.key]

    return unpickled, locate


def _find_legacy_storages(
    path: Path, mapped: mmap.mmap, keys: Unpickled, storages: dict[str, StorageRecord]
) -> dict[str, int]:
    if type(keys.value) is not list:
        raise FileFormatError(f"{path}: the list of storages is malformed; {ADVICE}")
    starts: dict[str, int] = {}
    at = keys.end
    for key in keys.value:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or key in starts:
            raise FileFormatError(f"{path}: the list of storages is malformed; {ADVICE}")
        count = int.from_bytes(mapped[at : at + 8], "little", signed=True)
        end = at + 8 + storage.numel * dtype_named(storage.dtype).size
        if end > len(mapped):
            raise FileFormatError(
                f"{path}: storage {key[:200]!r} ends at byte {end}, but the file has only "
                f"{len(mapped)}: it is truncated; download it again"
            )
        if count != storage.numel:
            raise FileFormatError(
                f"{path}: storage {key[:200]!r} has {count} elements in the file, but "
                f"{storage.numel} in the pickle; download it again"
            )
        starts[key] = at + 8
        at = end
    return starts
