"""Read a sentencepiece model: the few fields that a vocabulary needs.

Goes in: spiece.model, a protocol-buffer message. Comes out: a :class:`SentencePieceModel`.
Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto;
wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from .errors import FileFormatError
from .plain_file import read_bytes

# the largest in use has 250,000 pieces in 5 MB
_LARGEST_FILE = 64 << 20

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: A field: its number and its value, an integer or bytes.
Field = tuple[int, "int | bytes"]

_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceType(IntEnum):
    """``SentencePiece.Type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the vocabulary; its score is a log probability."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """Pieces by id, and how text is normalized before it is cut."""

    pieces: tuple[Piece, ...]
    algorithm: str = "unigram"
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        FileFormatError: it cannot be read or is not a sentencepiece model.
    """
    data = read_bytes(path, _LARGEST_FILE)
    if data is None:
        raise FileFormatError(f"{path}: cannot be read: No such file or directory")
    try:
        return _model(data)
    except (ValueError, IndexError, struct.error) as error:
        raise FileFormatError(f"{path}: not a sentencepiece model: {error}") from error


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number not in (1, 2, 3):
            continue
        if isinstance(value, int):
            raise ValueError(f"field {number} is not a message")
        if number == 1:
            pieces.append(_piece(dict(_fields(value))))
        else:
            # a message that occurs twice is merged
            (trainer if number == 2 else normalizer).update(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    kind = _integer(trainer.get(3, 1))
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=_ALGORITHMS.get(kind, str(kind)),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    text = _bytes(fields.get(1, b"")).decode()
    raw = fields.get(2, b"\0\0\0\0")
    (score,) = struct.unpack("<f", _bytes(raw))
    if not text:
        raise ValueError("a piece is empty")
    # far beyond any log probability, and NaN
    if not abs(score) < 1e9:
        raise ValueError(f"the piece {text!r} has the score {score}")
    return Piece(text, score, PieceType(_integer(fields.get(3, 1))))


def _fields(data: bytes) -> Iterator[Field]:
    """The fields of a message; fixed-size values as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if length > len(data) - at:
            raise ValueError(f"a field at byte {at} is cut off")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number with 7 bits per byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} is too long")


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes instead of a number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number instead of bytes")
    return value
