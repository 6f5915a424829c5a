"""Write a GGUF file so that it appears only when it is complete.

The header is packed by the ``gguf`` library; tensors are written behind it block by block, into a
sibling file that takes the output's name at the end.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from infer_os.models.network import MetadataValue
from numpy.typing import NDArray

from .errors import OutputError
from .plan import Plan, PlannedTensor
from .tokenizer import Vocabulary


def check_output(path: Path, n_bytes: int, *, force: bool) -> None:
    """Check that a file of about ``n_bytes`` can be written to ``path``.

    Raises:
        OutputError: it exists (without ``force``), its folder does not, or the disk is too full.
    """
    if path.is_dir():
        raise OutputError(f"{path}: a folder; name a file")
    if path.exists() and not force:
        raise OutputError(f"{path}: already exists; --force replaces it")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder for the output")
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if n_bytes > free:
        raise _disk_full(path, n_bytes, free)


def _disk_full(path: Path, n_bytes: int, free: int) -> OutputError:
    return OutputError(
        f"{path}: the disk is too full: the file needs {n_bytes / 1e6:.1f} MB and "
        f"{free / 1e6:.1f} MB are free; nothing was written"
    )


@contextmanager
def complete_file(path: Path) -> Iterator[int]:
    """A handle of a sibling file; renamed to ``path`` if the block succeeds, else removed.

    The sibling is locked, so that two conversions to one output do not mix, and what a killed one
    left behind is overwritten by the next.

    Raises:
        OutputError: the sibling cannot be created, is in use, or the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        lock = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{path}: another conversion is writing it") from error
        try:
            os.ftruncate(lock, 0)
            yield lock
            os.fsync(lock)
            os.replace(part, path)
            _sync_folder(path.parent)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    f"{path}: the disk became full while writing; nothing was left behind"
                ) from error
            raise
    finally:
        os.close(lock)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def gguf_header(
    graph: str, metadata: Mapping[str, MetadataValue], vocabulary: Vocabulary, plan: Plan
) -> bytes:
    """Pack everything in front of the tensors' data, padded to where that begins.

    Args:
        graph: llama.cpp's architecture.
        metadata: full keys and values.
        vocabulary: the tokenizer.
        plan: the tensors, in the order of their data.
    """
    buffer = io.BytesIO()
    writer = gguf.GGUFWriter(None, graph)
    for key, value in metadata.items():
        _add_value(writer, key, value)
    _add_vocabulary(writer, vocabulary)
    for tensor in plan.tensors:
        # gguf takes shapes as numpy has them and stores them reversed
        writer.add_tensor_info(
            tensor.rule.target, tensor.rule.shape, np.dtype(np.float32), tensor.n_bytes,
            raw_dtype=gguf.GGMLQuantizationType(tensor.type.id),
        )  # fmt: skip
    # without a path the writer opens nothing: it gets the buffer as its open, empty file
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(buffer, buffer.tell())
    return buffer.getvalue()


class GgufOutput:
    """A GGUF file of its final size, into which tensors are written in any order.

    What is never written stays zero, which is zero in every float type.
    """

    def __init__(self, handle: int, header: bytes, plan: Plan) -> None:
        """Reserve the disk space and write the header.

        Raises:
            OSError: the disk is full.
        """
        self._handle = handle
        self._offsets: dict[str, int] = {}
        end = len(header)
        for tensor in plan.tensors:
            self._offsets[tensor.rule.target] = end
            end += _padded(tensor.n_bytes)
        os.ftruncate(handle, end)
        try:
            os.posix_fallocate(handle, 0, end)
        except OSError as error:
            # not every file system can reserve; those that cannot fill up while writing
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        self._write_at(0, memoryview(header))

    def write(self, tensor: PlannedTensor, at: int, data: NDArray[np.uint8]) -> None:
        """Write bytes of a tensor, ``at`` bytes from its start."""
        self._write_at(self._offsets[tensor.rule.target] + at, data.data.cast("B"))

    def _write_at(self, offset: int, view: memoryview) -> None:
        while view:
            n_bytes = os.pwrite(self._handle, view, offset)
            offset, view = offset + n_bytes, view[n_bytes:]


def _padded(n_bytes: int) -> int:
    alignment = int(gguf.GGUF_DEFAULT_ALIGNMENT)
    return -(-n_bytes // alignment) * alignment


def _add_value(writer: Any, key: str, value: MetadataValue) -> None:
    # bool before int: True is an int to Python
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(vocabulary.merges)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
    for name, number in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{names[name]}_token_id", number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.normalizer:
        writer.add_string("inferos.tokenizer.normalizer", vocabulary.normalizer)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
