"""What every container format offers: named, typed tensors, as arrays over the mapped file."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infer_os.native.owner import Owner
from infer_os.native.watched_file import WatchedFile

from .errors import FileFormatError, SourceChanged
from .plain_file import check_plain, refuse_pointer


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
#: What :mod:`.eight_bit` makes of 8-bit weights and the scales beside them; no file states these.
ROWS8, BLOCKS8 = "int8 with SCB", "uint8 with absmax"


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

    def array(self, name: str) -> Any:
        """The tensor as a read-only array (any strides); bfloat16 as uint16.

        A :class:`~.decoded.DecodedMatrix` where values are in blocks.
        """
        ...

    def check(self) -> None:
        """Check that the file did not change since it was opened.

        Raises:
            SourceChanged: it did.
        """
        ...

    def forget(self) -> None:
        """Release the pages of the file that this process has read so far."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class MappedFile(Owner):
    """A file mapped for reading. Use as a context manager; arrays die with it."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            FileFormatError: it is empty or cannot be read.
        """
        self.path = path
        with contextlib.ExitStack() as stack:
            try:
                check_plain(path)
                self._watch = stack.enter_context(WatchedFile(path))
                with path.open("rb") as file:
                    self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # mmap refuses an empty file
                raise FileFormatError(f"{path}: the file is empty; download it again") from error
            except OSError as error:
                raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error
            refuse_pointer(path, self._mapped[:64])
            stack.pop_all()

    def check(self) -> None:
        """See :meth:`TensorFile.check`."""
        complaint = self._watch.complaint()
        if complaint:
            raise SourceChanged(f"{complaint}; convert again once it is complete")

    def forget(self) -> None:
        """Release the pages that were read; only the page cache may keep them."""
        # in a read-only mapping, a page still in use comes back by itself
        with contextlib.suppress(OSError, ValueError):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file, or leave that to the last array that still uses it."""
        self._watch.close()
        with contextlib.suppress(BufferError):
            self._mapped.close()
