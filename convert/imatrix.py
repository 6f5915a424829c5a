"""Importance matrices: how much each column of a weight matrix matters to its results.

In and out: llama.cpp's imatrix files in GGUF. Format: ``common_imatrix_load`` in
llama.cpp's common/imatrix-loader.cpp; ``save_imatrix`` in tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from infer_os.models.rotation import ROTATION, ROTATION_KEY
from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import GgufArray, GgufHeader, read_gguf_header, tensor_array
from infer_os.native.watched_file import WatchedFile

from .errors import FileFormatError, SourceError
from .plain_file import check_plain

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
# a text file names a few corpora; more is a broken or hostile header
_MOST_DATASETS = 1 << 10
# counts are stored as F32, which is exact up to here
_LARGEST_COUNT = float(1 << 53)
_MOST_NAMES_SHOWN = 4

# A column that the text hardly reached would weigh nothing, and a block of such columns would
# become zeros: it gets this share of the mean weight, too little to affect any other.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """The inputs of one matrix: (n_columns,) sums of squares over ``count`` rows."""

    sums: NDArray[np.float32]
    count: int

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """(n_columns,); ones if nothing was counted.

        Rounded to float32, they equal llama-quantize's, except that none overflows or vanishes.
        """
        if self.count == 0:
            return np.ones(len(self.sums))
        return self.sums.astype(np.float64) / float(np.float32(self.count))


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Column sums by the name of the weight matrix in the GGUF file.

    ``datasets`` names the texts; ``chunk_count`` chunks of ``chunk_size`` tokens were decoded.
    ``rotation`` is the one folded into the weights of the model that ran ("" for none): it changes
    the columns.
    """

    entries: Mapping[str, ColumnSums]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    rotation: str = ""

    def weights(self, name: str) -> NDArray[np.float32] | None:
        """(n_columns,) weight of each column's squared error; None if there is no entry.

        The mean squares divided by a power of two, which brings their mean to between 1 and 2 and
        changes no bit of ggml's results; none is below a millionth of the mean.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        squares = entry.mean_squares
        mean = float(squares.mean())
        if mean <= 0.0:
            return np.ones_like(entry.sums)
        squares = np.maximum(squares, _FLOOR * mean)
        return np.ldexp(squares, 1 - math.frexp(mean)[1]).astype(np.float32)

    @property
    def digest(self) -> str:
        """SHA-256 of all sums and counts, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name in sorted(self.entries):
            entry = self.entries[name]
            digest.update(f"{name}:{entry.count}:".encode())
            digest.update(np.ascontiguousarray(entry.sums, np.float32).tobytes())
        return digest.hexdigest()

    def missing(self, row_lengths: Mapping[str, int]) -> tuple[str, ...]:
        """Which of these matrices (name to row length) have no weights here.

        Raises:
            SourceError: it was made for another model: no name fits, or some length does not.
        """
        for name, width in row_lengths.items():
            entry = self.entries.get(name)
            if entry is not None and len(entry.sums) != width:
                raise SourceError(
                    f"the importance matrix is from another model: {name} has rows of {width} "
                    f"values, but there are weights for {len(entry.sums)}"
                )
        missing = tuple(name for name in row_lengths if name not in self.entries)
        if row_lengths and len(missing) == len(row_lengths):
            raise SourceError(
                f"the importance matrix is from another model: it has {_shown(self.entries)}, "
                f"but the file will have {_shown(row_lengths)}"
            )
        return missing


def write_imatrix(matrix: ImportanceMatrix, path: Path) -> None:
    """Write llama.cpp's imatrix GGUF straight to ``path``.

    Write to a sibling and rename (``gguf_writer.complete_file``) to make it appear complete.
    """
    writer = gguf.GGUFWriter(path, "imatrix")
    # llama-imatrix writes no architecture: this is not a model
    del writer.kv_data[0][gguf.Keys.General.ARCHITECTURE]
    writer.add_type("imatrix")
    # llama-quantize requires the key, and gguf writes no empty array
    writer.add_array(_DATASETS, list(matrix.datasets) or [""])
    writer.add_uint32(_CHUNKS, matrix.chunk_count)
    writer.add_uint32(_CHUNK_SIZE, matrix.chunk_size)
    if matrix.rotation:
        writer.add_string(ROTATION_KEY, matrix.rotation)
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        writer.add_tensor(name + _SUMS, np.ascontiguousarray(entry.sums, np.float32))
        writer.add_tensor(name + _COUNTS, np.array([entry.count], np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read llama.cpp's imatrix GGUF.

    Raises:
        FileFormatError: no such file, another kind of file, or one that is damaged.
    """
    _refuse_legacy(path)
    try:
        header = read_gguf_header(path)
        with WatchedFile(path) as watch:
            matrix = _from_header(header)
            if complaint := watch.complaint():
                raise FileFormatError(complaint)
            return matrix
    except GgufError as error:
        raise FileFormatError(str(error)) from error
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error


def _from_header(header: GgufHeader) -> ImportanceMatrix:
    path, metadata = header.path, header.metadata
    kind = metadata.get("general.type")
    if kind != "imatrix":
        what = f"a {kind} file" if isinstance(kind, str) else "a GGUF"
        raise FileFormatError(
            f"{path}: {what}, not an importance matrix (general.type must be 'imatrix')"
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = {name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)}
    names |= {name.removesuffix(_COUNTS) for name in tensors if name.endswith(_COUNTS)}
    if not names:
        raise FileFormatError(f"{path}: an importance matrix without entries")
    entries: dict[str, ColumnSums] = {}
    for name in sorted(names):
        sums, counts = tensors.get(name + _SUMS), tensors.get(name + _COUNTS)
        if sums is None or counts is None:
            gap = _SUMS if sums is None else _COUNTS
            raise FileFormatError(f"{path}: the tensor {name + gap} is missing")
        if (sums.type.name, counts.type.name) != ("f32", "f32"):
            raise FileFormatError(f"{path}: {name}: sums and counts must be F32")
        entries[name] = _entry(path, name, tensor_array(header, sums), tensor_array(header, counts))
    return ImportanceMatrix(
        entries,
        _strings(path, metadata.get(_DATASETS)),
        _number(path, metadata, _CHUNKS),
        _number(path, metadata, _CHUNK_SIZE),
        _rotation(path, metadata),
    )


def _entry(path: Path, name: str, sums: NDArray[Any], counts: NDArray[Any]) -> ColumnSums:
    if counts.size != 1 or sums.size != sums.shape[-1]:
        raise FileFormatError(
            f"{path}: {name} has weights for {counts.size} experts; the networks supported here "
            "have none"
        )
    count = float(counts.reshape(-1)[0])
    if not 0 <= count <= _LARGEST_COUNT:
        raise FileFormatError(f"{path}: {name} counts {count:g} rows")
    values = np.array(sums, np.float32).reshape(-1)
    # written so that NaN fails too
    if not (np.isfinite(values) & (values >= 0)).all():
        raise FileFormatError(
            f"{path}: {name} has sums of squares that are negative or not numbers; the file is "
            "damaged"
        )
    return ColumnSums(values, round(count))


def _strings(path: Path, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, GgufArray) or len(value) > _MOST_DATASETS:
        raise FileFormatError(
            f"{path}: {_DATASETS} is not a list of at most {_MOST_DATASETS} names"
        )
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise FileFormatError(f"{path}: {_DATASETS} is not a list of names")
    return tuple(name for name in names if name)


def _number(path: Path, metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FileFormatError(f"{path}: {key} is {value!r}; expected a number from 0")
    return value


def _rotation(path: Path, metadata: Mapping[str, Any]) -> str:
    value = metadata.get(ROTATION_KEY, "")
    if value not in ("", ROTATION):
        raise FileFormatError(f"{path}: {ROTATION_KEY} is {value!r}; expected {ROTATION!r}")
    return str(value)


def _refuse_legacy(path: Path) -> None:
    """Recognise the format that llama-imatrix wrote before GGUF: a count, then length and name."""
    try:
        check_plain(path)
        with path.open("rb") as file:
            start = file.read(72)
    except OSError:
        return  # the GGUF reader will report it
    if start[:4] == b"GGUF" or len(start) < 8:
        return
    length = int.from_bytes(start[4:8], "little")
    if 0 < length < 64 and start[8 : 8 + length].endswith(b".weight"):
        raise FileFormatError(
            f"{path}: an importance matrix in llama.cpp's old .dat format; rewrite it with "
            f"llama-imatrix --in-file {path.name} -o {path.stem}.gguf"
        )


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES_SHOWN} more" if len(listed) > _MOST_NAMES_SHOWN else ""
    return ", ".join(listed[:_MOST_NAMES_SHOWN]) + more
