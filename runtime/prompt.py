"""Prompts: read from a file or a pipe and tokenized, no further than a context reaches.

In: text of any length, from a stream that may be endless. Out: its bytes or tokens, or one error: a
text too long for any context is neither read nor tokenized whole.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import BinaryIO

from .errors import PromptError
from .interface import Vocabulary

#: Bytes of a prompt: more than the largest context (1048576 tokens) of long tokens has.
LARGEST = 16 << 20
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def read_file(path: Path) -> bytes:
    """A file's text, without a byte order mark.

    Raises:
        PromptError: it cannot be read, is too long, or is UTF-16.
    """
    try:
        with path.open("rb") as file:
            return read_stream(file, str(path))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from error


def read_stream(stream: BinaryIO, name: str = "standard input") -> bytes:
    """A stream's text, as :func:`read_file` gives it.

    Raises:
        PromptError: it is too long, or is UTF-16.
    """
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise PromptError(f"{name}: longer than {LARGEST >> 20} MB: no context holds so much")
    if data.startswith(_OTHER_MARKS):
        raise PromptError(f"{name}: is UTF-16 or UTF-32 text; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def tokenize(vocab: Vocabulary, text: str | bytes, n_ctx: int) -> list[int]:
    """A prompt's tokens.

    Raises:
        PromptError: it has far more than the context holds.
    """
    check_length(vocab, n_ctx, "the prompt", text)
    return vocab.tokenize(text)


def check_length(vocab: Vocabulary, n_ctx: int, what: str, *texts: str | bytes) -> None:
    """Refuse what must be too long, before it is tokenized. What passes may still be too long.

    Raises:
        PromptError: the texts have far more tokens than the context holds; ``what`` names them.
    """
    fewest = sum(vocab.fewest_tokens(text, n_ctx) for text in texts)
    if fewest > n_ctx:
        raise PromptError(
            f"{what} has at least {fewest} tokens, but the context holds {n_ctx}; shorten it or "
            "raise --context"
        )
