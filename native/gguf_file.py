"""Read a GGUF header in bounded Python, before any C++ sees the file.

Every count, length and offset is checked against the file's size first: GGUF parsers written in C++
have had heap overflows through crafted headers. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import GgufError
from .ggml_types import GgmlType, ggml_types
from .watched_file import WatchedFile

#: GGUF's names of special tokens, where they are not Hugging Face's; the first has its spelling.
SPECIAL_NAMES = {"sep": "seperator", "unk": "unknown", "pad": "padding"}

# far above any real file; a larger count is a broken or hostile header
_MOST_TENSORS = 1 << 16
_MOST_KEYS = 1 << 16
_LONGEST_KEY = 1 << 16
_LONGEST_NAME = 63  # GGML_MAX_NAME - 1
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
#: That of files that state none (GGUF_DEFAULT_ALIGNMENT of gguf.h).
_USUAL_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 16
_LARGEST_DIMENSION = 1 << 48
# of a file that is elsewhere: what is read first, and at most (BLOOM's tokens need 10 MB)
_FIRST_BYTES = 1 << 20
_LARGEST_HEADER = 256 << 20

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"),
    3: struct.Struct("<h"), 4: struct.Struct("<I"), 5: struct.Struct("<i"),
    6: struct.Struct("<f"), 7: struct.Struct("<?"), 10: struct.Struct("<Q"),
    11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's entry: ``shape`` as ggml has it, the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    n_bytes: int


def padded(n_bytes: int) -> int:
    """What so many bytes take in a file that states no alignment of its own."""
    return -(-n_bytes // _USUAL_ALIGNMENT) * _USUAL_ALIGNMENT


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata, decoded only when iterated."""

    type: int
    count: int
    _data: bytes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        if self.type != _STRING:
            form = struct.Struct(f"<{self.count}{_SCALARS[self.type].format[-1]}")
            yield from form.unpack(self._data)
            return
        for text in self.texts():
            yield text.decode("utf-8", "replace")

    def texts(self) -> Iterator[bytes]:
        """The strings of an array of strings, as the file has them."""
        at, data, unpack = 0, self._data, _U64.unpack_from
        for _ in range(self.count):
            (length,) = unpack(data, at)
            at += 8 + length
            yield data[at - length : at]

    def chosen(self, wanted: Iterable[object]) -> Iterator[str]:
        """The strings, decoded, at which a value of ``wanted`` is true."""
        for text in compress(self.texts(), wanted):
            yield text.decode("utf-8", "replace")

    @property
    def is_text(self) -> bool:
        """Whether it is an array of strings."""
        return self.type == _STRING


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header. ``metadata`` values are numbers, strings or :class:`GgufArray`."""

    path: Path
    version: int
    file_bytes: int
    alignment: int
    data_offset: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the graph."""
        return str(self.metadata.get("general.architecture", ""))

    def count(self, key: str, default: int, low: int = 1) -> int:
        """The graph's setting ``{architecture}.{key}``; if per layer, the largest value.

        Raises:
            GgufError: not a whole number from ``low`` to 2^32 - 1.
        """
        full = f"{self.architecture}.{key}"
        value = self.metadata.get(full, default)
        values = list(value) if isinstance(value, GgufArray) else [value]
        good = all(type(n) is int and low <= n < 1 << 32 for n in values)
        if not good or not values:
            shown = f"{len(values)} values" if len(values) != 1 else repr(values[0])
            raise GgufError(
                f"{self.path}: bad GGUF header: {full!r} is {shown}; expected a whole number "
                f"from {low}"
            )
        return int(max(values))

    @property
    def n_params(self) -> int:
        """Values of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors."""
        return 8 * self.weight_bytes / self.n_params if self.n_params else 0.0


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        GgufError: no such file, not a GGUF, or a header that is truncated or inconsistent.
    """
    try:
        watch = WatchedFile(path)
    except FileNotFoundError:
        raise GgufError(f"{path}: no such file") from None
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror}") from None
    with watch:
        try:
            return _read_watched(path)
        finally:
            # if the file was cut meanwhile, nothing read means anything, errors included
            if complaint := watch.complaint():
                raise GgufError(complaint)


def read_remote_header(
    path: Path, read_start: Callable[[int], bytes], file_bytes: int
) -> GgufHeader:
    """Read and check the header of a file that is elsewhere.

    Args:
        path: what to call the file.
        read_start: gives its first bytes, as many as asked for.
        file_bytes: its size.

    Raises:
        GgufError: as :func:`read_gguf_header`, or a header that does not end.
    """
    n_bytes = min(_FIRST_BYTES, file_bytes)
    while True:
        try:
            return _HeaderReader(path, read_start(n_bytes), file_bytes).read()
        except _HeaderGoesOn:
            if n_bytes >= _LARGEST_HEADER:
                raise GgufError(
                    f"{path}: bad GGUF header: it has more than {_LARGEST_HEADER} bytes"
                ) from None
            n_bytes = min(n_bytes * 4, file_bytes, _LARGEST_HEADER)


def read_raw_keys(path: Path) -> dict[str, bytes]:
    """Every metadata key with its value as the file has them: name, type and value.

    Raises:
        GgufError: as :func:`read_gguf_header`.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        reader = _HeaderReader(path, mapped, len(mapped))
        reader.read()
        return {key: mapped[start:end] for key, (start, end) in reader.spans.items()}


def _read_watched(path: Path) -> GgufHeader:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise GgufError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise GgufError(f"{path}: a folder, not a GGUF file") from None
    except ValueError:  # mmap refuses an empty file
        raise GgufError(f"{path}: the file is empty") from None
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror}") from None
    with mapped:
        stat = path.stat()
        # a program can set the time of writing back, but not the time of change
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = _kept.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        header = _HeaderReader(path, mapped, len(mapped)).read()
        # another change within the same tick of the file system's clock would not show
        if time.time_ns() - stat.st_ctime_ns >= _SETTLED_NS:
            _kept.clear()
            _kept[path] = (identity, header)
        return header


def tensor_array(header: GgufHeader, tensor: GgufTensor) -> NDArray[Any]:
    """A tensor's values, mapped read-only from the file, shaped as numpy has it (reversed).

    Raises:
        GgufError: neither F32 nor F16, or the file has changed since its header was read.
    """
    dtypes = {"f32": "<f4", "f16": "<f2"}
    if tensor.type.name not in dtypes:
        raise GgufError(
            f"{header.path}: tensor {tensor.name!r} is {tensor.type.name}; expected f32 or f16"
        )
    try:
        return np.memmap(
            header.path, dtypes[tensor.type.name], "r",
            header.data_offset + tensor.offset, tensor.shape[::-1],
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise GgufError(
            f"{header.path}: tensor {tensor.name!r} can no longer be read: {error}"
        ) from error


#: Reading a header with BLOOM's 250 thousand tokens takes a good part of a second, and every layer
#: of a command reads it: the last one is kept.
_kept: dict[Path, tuple[tuple[int, ...], GgufHeader]] = {}
# how long a file's times may stay as they are while it is written
_SETTLED_NS = 2_000_000_000


#: "ggml", "ggmf" and "ggjt" as little-endian numbers.
_OLD_MAGICS = (b"lmgg", b"fmgg", b"tjgg")


class _HeaderGoesOn(Exception):
    """A header that is longer than what was read of its file."""


class _HeaderReader:
    """A cursor over the mapped file, or its first bytes, that never passes its end."""

    def __init__(self, path: Path, mapped: mmap.mmap | bytes, file_bytes: int) -> None:
        self._path = path
        self._mapped = mapped
        self._size = file_bytes
        self._at = 0
        self.spans: dict[str, tuple[int, int]] = {}

    def read(self) -> GgufHeader:
        magic = self._take(4)
        if magic in _OLD_MAGICS:
            raise GgufError(
                f"{self._path}: an old ggml file, from before GGUF; infer-os convert FILE "
                "--tokenizer DIR converts one of GPT-J"
            )
        if magic != b"GGUF":
            raise GgufError(f"{self._path}: not a GGUF file (it does not start with 'GGUF')")
        version = self._unpack(_U32)
        if version not in (2, 3):
            raise self._error(f"GGUF version {version}; supported are 2 and 3")
        n_tensors = self._count("tensors", _MOST_TENSORS)
        n_keys = self._count("metadata keys", _MOST_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            start = self._at
            key = self._string(_LONGEST_KEY, "a metadata key")
            if key in metadata:
                raise self._error(f"the metadata key {key!r} occurs twice")
            metadata[key] = self._value(self._unpack(_U32), key)
            self.spans[key] = (start, self._at)
        alignment = metadata.get("general.alignment", _USUAL_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 8 <= alignment <= _LARGEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._error(f"alignment {alignment!r}; expected a power of two from 8")
        entries = [self._tensor(alignment) for _ in range(n_tensors)]
        data_offset = -(-self._at // alignment) * alignment
        self._check_layout(entries, data_offset)
        return GgufHeader(
            self._path, version, self._size, alignment, data_offset, metadata, tuple(entries)
        )

    def _error(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: bad GGUF header: {what}")

    def _take(self, n: int) -> bytes:
        if n > self._size - self._at:
            raise self._error(
                f"it ends at byte {self._size}, in the middle of its header; "
                "the file is truncated or damaged"
            )
        if n > len(self._mapped) - self._at:
            raise _HeaderGoesOn
        taken = self._mapped[self._at : self._at + n]
        self._at += n
        return taken

    def _unpack(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _count(self, what: str, most: int) -> int:
        count = self._unpack(_U64)
        if count > most:
            raise self._error(f"{count} {what}; at most {most} are accepted")
        return int(count)

    def _string(self, longest: int, what: str) -> str:
        length = self._unpack(_U64)
        if length > longest:
            raise self._error(f"{what} of {length} bytes; at most {longest} are accepted")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind == _STRING:
            length = self._unpack(_U64)
            return self._take(length).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(key)
        raise self._error(f"{key!r} has the unknown value type {kind}")

    def _array(self, key: str) -> GgufArray:
        kind, count = self._unpack(_U32), self._unpack(_U64)
        start = self._at
        if kind in _SCALARS:
            self._take(self._bounded(count, _SCALARS[kind].size, key))
        elif kind == _STRING:
            self._bounded(count, _U64.size, key)
            self._skip_strings(count)
        else:
            raise self._error(f"{key!r} is an array of the unsupported type {kind}")
        return GgufArray(kind, count, self._mapped[start : self._at])

    def _bounded(self, count: int, size: int, key: str) -> int:
        if count > (self._size - self._at) // size:
            raise self._error(f"{key!r} claims {count} values, more than the file can hold")
        return count * size

    def _skip_strings(self, count: int) -> None:
        at, mapped, unpack = self._at, self._mapped, _U64.unpack_from
        size = len(mapped)
        for _ in range(count):
            at += 8 + unpack(mapped, at)[0] if at + 8 <= size else size
            if at > size:
                self._at = size
                self._take(1)  # raises: truncated, or more is to be read
        self._at = at

    def _tensor(self, alignment: int) -> GgufTensor:
        name = self._string(_LONGEST_NAME, "a tensor name")
        n_dims = self._unpack(_U32)
        if not 1 <= n_dims <= _MOST_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {n_dims} dimensions; expected 1 to 4")
        shape = tuple(self._unpack(_U64) for _ in range(n_dims))
        if any(not 1 <= n <= _LARGEST_DIMENSION for n in shape):
            raise self._error(f"tensor {name!r} has the shape {shape}")
        number = self._unpack(_U32)
        known = ggml_types().get(number)
        if known is None:
            raise self._error(f"tensor {name!r} has the unknown type {number}")
        if shape[0] % known.block:
            raise self._error(
                f"tensor {name!r}: rows of {shape[0]} do not divide into {known.name}'s blocks "
                f"of {known.block}"
            )
        offset = self._unpack(_U64)
        if offset % alignment:
            raise self._error(f"tensor {name!r} at offset {offset} is not aligned to {alignment}")
        return GgufTensor(name, shape, known, offset, known.row_bytes(math.prod(shape)))

    def _check_layout(self, tensors: list[GgufTensor], data_offset: int) -> None:
        seen: set[str] = set()
        end = 0
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.name in seen:
                raise self._error(f"the tensor {tensor.name!r} occurs twice")
            seen.add(tensor.name)
            if tensor.offset < end:
                raise self._error(f"the tensor {tensor.name!r} overlaps the one before it")
            end = tensor.offset + tensor.n_bytes
            if end > self._size - data_offset:
                raise GgufError(
                    f"{self._path}: truncated: tensor {tensor.name!r} ends at byte "
                    f"{data_offset + end}, but the file has only {self._size}; copy or convert "
                    "it again"
                )
