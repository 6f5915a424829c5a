"""Sentencepiece's unigram tokenization with byte fallback, which llama.cpp's lacks.

Goes in: UTF-8 text and the vocabulary of a GGUF file whose tokenizer is "t5". Comes out: token ids.
llama.cpp finds the same path but writes the unknown token for a character without a piece, where
sentencepiece writes the pieces of its bytes; :class:`~.model.Vocab` uses this only for such texts.
Follows ``llm_tokenizer_ugm_session`` in llama.cpp's src/llama-vocab.cpp and, for the fallback,
``SentencePieceProcessor::PopulateSentencePieceText`` in sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import GgufError
from .gguf_file import GgufArray, GgufHeader

_SPACE = "▁".encode()
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNKNOWN_PENALTY = 10.0
_CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"


class CharsMap:
    """A normalizer's compiled table: text that is replaced, the longest match first.

    Its size in bytes (u32), a double array of 32-bit units, then the replacements, each ending in a
    zero byte. Layout: ``PrecompiledCharsMap`` in sentencepiece's
    src/normalizer.cc, units as in darts-clone's ``DoubleArrayUnit``.
    """

    def __init__(self, data: bytes) -> None:
        """Parse the table.

        Raises:
            ValueError: it is malformed.
        """
        self._units: Sequence[int] = ()
        self._texts = b""
        if not data:
            return
        size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
        if size == 0 or size % 4 or size + 4 >= len(data) or data[-1]:
            raise ValueError("a malformed table of normalized characters")
        self._units = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._texts = data[4 + size :]

        self._check_bounds()

    def _check_bounds(self) -> None:
        """Walk the whole table: llama.cpp ends the process at a step outside of it."""
        units = np.array(self._units, np.int64)
        bases = (units >> 10) << ((units & 1 << 9) >> 6)
        nodes = bases[:1]  # where the children of each visited node are, (n_nodes,)
        seen = np.zeros(len(units), bool)
        while len(nodes):
            if (nodes | 0xFF).max() >= len(units):
                raise ValueError("a table of normalized characters that leaves its bounds")
            places = nodes[:, None] ^ np.arange(1, 256)  # (n_nodes, 255)
            children = places[units[places] & (1 << 31 | 0xFF) == np.arange(1, 256)]
            children = np.unique(children[~seen[children]])
            seen[children] = True
            nodes = children ^ bases[children]
            leaves = nodes[units[children] >> 8 & 1 == 1]
            outside = leaves[leaves >= len(units)]
            if len(outside) or (units[leaves] & 0x7FFFFFFF >= len(self._texts)).any():
                raise ValueError("a table of normalized characters that leaves its bounds")

    def match(self, text: bytes, at: int) -> tuple[bytes, int] | None:
        """The replacement of the longest match at ``at`` and the match's length."""
        if not self._units:
            return None
        found: tuple[int, int] | None = None
        node = _base(self._units[0])
        for end in range(at, len(text)):
            byte = text[end]
            node ^= byte
            unit = self._units[node]
            if not byte or unit & (1 << 31 | 0xFF) != byte:
                break
            node ^= _base(unit)
            if unit >> 8 & 1:
                found = self._units[node] & 0x7FFFFFFF, end + 1 - at
        if found is None:
            return None
        start, length = found
        return self._texts[start : self._texts.index(0, start)], length

    def normalize(self, text: bytes) -> bytes:
        """The text with every match replaced."""
        out, at = bytearray(), 0
        while at < len(text):
            replacement, length = self.match(text, at) or (text[at : at + 1], 1)
            out += replacement
            at += length
        return bytes(out)


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


@dataclass(frozen=True, slots=True)
class UnigramVocabulary:
    """The data of a "t5" tokenizer as GGUF stores it; ``types`` are ``llama_token_type``."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    charsmap: bytes
    add_space_prefix: bool
    remove_extra_whitespaces: bool


def read_unigram(header: GgufHeader) -> UnigramVocabulary:
    """The vocabulary of a GGUF file whose tokenizer is "t5"."""
    metadata = header.metadata
    charsmap = metadata.get(_CHARSMAP_KEY)
    return UnigramVocabulary(
        tokens=tuple(metadata.get("tokenizer.ggml.tokens", ())),
        scores=tuple(metadata.get("tokenizer.ggml.scores", ())),
        types=tuple(metadata.get("tokenizer.ggml.token_type", ())),
        charsmap=bytes(value & 0xFF for value in charsmap) if charsmap is not None else b"",
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", False) is True,
        remove_extra_whitespaces=(
            metadata.get("tokenizer.ggml.remove_extra_whitespaces", False) is True
        ),
    )


def check_unigram(header: GgufHeader) -> None:
    """Check what llama.cpp would end the process on.

    Raises:
        GgufError: the normalizer's table, the scores or the unknown token.
    """
    metadata = header.metadata
    if metadata.get("tokenizer.ggml.model") != "t5":
        return
    charsmap = metadata.get(_CHARSMAP_KEY)
    if charsmap is None:
        return
    if not isinstance(charsmap, GgufArray) or charsmap.type not in (0, 1):
        raise GgufError(f"{header.path}: {_CHARSMAP_KEY} is not an array of bytes")
    try:
        CharsMap(bytes(value & 0xFF for value in charsmap))
    except ValueError as error:
        raise GgufError(f"{header.path}: {_CHARSMAP_KEY}: {error}") from error


class UnigramTokenizer:
    """Cuts text into the pieces with the largest sum of scores."""

    def __init__(self, vocabulary: UnigramVocabulary) -> None:
        """Index the vocabulary.

        Raises:
            ValueError: it has no unknown token, or its table is malformed.
        """
        self._v = vocabulary
        self._charsmap = CharsMap(vocabulary.charsmap)
        texts = [token.encode() for token in vocabulary.tokens]
        ids = range(len(texts))
        types = vocabulary.types
        self._unknown = next((i for i in ids if types[i] == _UNKNOWN), -1)
        if self._unknown < 0:
            raise ValueError("a unigram vocabulary without an unknown token")
        self._pieces = {
            texts[i]: (i, 0.0 if types[i] == _USER_DEFINED else vocabulary.scores[i])
            for i in ids
            if types[i] in (_NORMAL, _USER_DEFINED, _UNUSED)
        }
        # only as far as the longest piece with the same first byte
        self._longest: dict[int, int] = {}
        for text in self._pieces:
            if text:
                self._longest[text[0]] = max(self._longest.get(text[0], 0), len(text))
        self._unknown_score = (
            min((vocabulary.scores[i] for i in ids if types[i] == _NORMAL), default=0.0)
            - _UNKNOWN_PENALTY
        )
        self._bytes = {
            int(vocabulary.tokens[i][3:5], 16): i for i in ids if types[i] == _BYTE
        }  # "<0x41>"
        marked = [i for i in ids if types[i] in (_CONTROL, _USER_DEFINED, _UNKNOWN)]
        # llama.cpp looks for longer ones first
        self._marked = sorted(marked, key=lambda i: -len(texts[i]))
        self._texts = texts

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of a text, with nothing added around it."""
        result: list[int] = []
        for part in self._partition(text.encode(), parse_special):
            if isinstance(part, int):
                result.append(part)
            else:
                result += self._encode_plain(self._normalize(part))
        return result

    def _partition(self, text: bytes, parse_special: bool) -> list[bytes | int]:
        parts: list[bytes | int] = [text] if text else []
        for i in self._marked:
            mark = self._texts[i]
            if not mark or mark not in text:
                continue
            if not parse_special and self._v.types[i] != _USER_DEFINED:
                continue
            parts = [piece for part in parts for piece in _cut(part, mark, i)]
        return parts

    def _normalize(self, text: bytes) -> bytes:
        out = bytearray()
        prefix = self._v.add_space_prefix
        merge = self._v.remove_extra_whitespaces
        in_word = False
        for byte in self._charsmap.normalize(text):
            if byte == 0x20:
                in_word = False
                if not merge:
                    out += _SPACE
                continue
            if not in_word:
                in_word = True
                if prefix or merge:
                    out += _SPACE
                    prefix = False
            out.append(byte)
        return bytes(out)

    def _encode_plain(self, text: bytes) -> list[int]:
        """Viterbi over the characters of a normalized text."""
        n = len(text)
        worst = float("-inf")
        best: list[tuple[float, int, int]] = [(worst, 0, 0)] * (n + 1)  # score, start, token
        best[0] = (0.0, 0, 0)
        at = 0
        while at < n:
            score = best[at][0]
            width = _width(text[at])
            alone = False
            for end in range(at + 1, min(n, at + self._longest.get(text[at], 0)) + 1):
                piece = self._pieces.get(text[at:end])
                if piece is None:
                    continue
                alone = alone or end - at == width
                if score + piece[1] > best[end][0]:
                    best[end] = (score + piece[1], at, piece[0])
            end = min(at + width, n)
            if not alone and score + self._unknown_score > best[end][0]:
                best[end] = (score + self._unknown_score, at, self._unknown)
            at = end
        found: list[tuple[int, bytes]] = []
        end = n
        while end:
            _, start, token = best[end]
            found.append((token, text[start:end]))
            end = start
        return list(self._with_bytes(reversed(found)))

    def _with_bytes(self, found: Iterable[tuple[int, bytes]]) -> Iterable[int]:
        after_unknown = False
        for token, text in found:
            if token != self._unknown:
                after_unknown = False
                yield token
            elif all(byte in self._bytes for byte in text):
                after_unknown = False
                yield from (self._bytes[byte] for byte in text)
            else:
                # one unknown token stands for several unknown characters
                if not after_unknown:
                    yield token
                after_unknown = True


def _cut(part: bytes | int, mark: bytes, token: int) -> list[bytes | int]:
    if isinstance(part, int):
        return [part]
    pieces: list[bytes | int] = []
    for text in part.split(mark):
        pieces += [text, token] if text else [token]
    return pieces[:-1]


def _width(byte: int) -> int:
    """Bytes of the UTF-8 character that starts with ``byte``."""
    return 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
