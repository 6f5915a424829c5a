"""Read the small files of a checkpoint: bounded, with one line on what is wrong.

In: a path. Out: its bytes, its text, or the JSON object that it holds. A UTF-8 byte order mark is
dropped; a Git LFS pointer, UTF-16, and anything but a plain file (a pipe, a device) are refused.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from pathlib import Path
from typing import Any

from infer_os.json_text import json_fault

from .errors import FileFormatError

# a config, index or tokenizer settings file is never larger; tokenizer.json has its own limit
_LARGEST_JSON = 64 << 20
_POINTER = b"version https://git-lfs"
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def check_plain(path: Path) -> None:
    """Check that reading a file will end.

    Raises:
        OSError: there is no such file.
        FileFormatError: it is a pipe, a device or a socket, which may have no end.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder will say so
        raise FileFormatError(f"{path}: not a plain file")


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuse a Git LFS pointer, recognised by its first bytes.

    Raises:
        FileFormatError: it is one; https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
    """
    if start.startswith(_POINTER):
        raise FileFormatError(
            f"{path}: a Git LFS pointer in place of the file; run 'git lfs pull' in its "
            "repository, or download the file"
        )


def read_bytes(path: Path, largest: int) -> bytes | None:
    """A file's bytes; None if there is no such file.

    Raises:
        FileFormatError: it cannot be read, or has more than ``largest`` bytes.
    """
    try:
        check_plain(path)
        with path.open("rb") as file:
            # a read reserves what is asked for, even if the file has less
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, largest) + 1)
            if len(data) > size:  # it grew, or has no size, as in /proc
                data += file.read(largest + 1 - len(data))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > largest:
        raise FileFormatError(f"{path}: larger than {largest} bytes")
    refuse_pointer(path, data)
    return data


def read_text(path: Path, largest: int) -> str | None:
    """A file's text; None if there is no such file.

    Raises:
        FileFormatError: it cannot be read, is too large, or is not UTF-8.
    """
    data = read_bytes(path, largest)
    return None if data is None else decode(path, data)


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a long text, without a byte order mark; it may come through a pipe.

    Raises:
        OSError: it cannot be read.
        FileFormatError: it is no text, as of a device that has no end.
    """
    with path.open("rb") as file:
        data = file.read(most).removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise FileFormatError(f"{path}: not a text: it contains NUL bytes")
    return data


def decode(path: Path, data: bytes) -> str:
    """UTF-8 as text, without a byte order mark.

    Raises:
        FileFormatError: it is not UTF-8.
    """
    if data.startswith(_OTHER_MARKS):
        raise FileFormatError(f"{path}: is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: is not UTF-8 text: byte {error.start}") from None


def read_json(path: Path, largest: int = _LARGEST_JSON) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is no such file.

    Raises:
        FileFormatError: it is larger than ``largest`` bytes, unreadable or not a JSON object.
    """
    data = read_bytes(path, largest)
    return None if data is None else parse_object(path, data)


def parse_object(path: Path | str, data: bytes) -> dict[str, Any]:
    """A JSON object from its bytes; ``path`` says where they come from.

    Raises:
        FileFormatError: they are not a JSON object.
    """
    try:
        value = json.loads(decode(Path(path), data))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not JSON: {json_fault(error)}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: expected a JSON object")
    return value
