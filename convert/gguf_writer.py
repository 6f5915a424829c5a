"""Write a GGUF file so that it appears only when it is complete.

The header is packed by the ``gguf`` library; tensors are streamed behind it block by block into a
sibling file, which takes the output's name at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
from numpy.typing import NDArray

from infer_os.models.network import MetadataValue

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
def complete_file(path: Path) -> Iterator[Path]:
    """A sibling path to write to; renamed to ``path`` if the block succeeds, else removed.

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
            yield part
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


class GgufStream:
    """An open GGUF file whose header is written: tensors follow in the plan's order."""

    def __init__(self, path: Path, graph: str, metadata: Mapping[str, MetadataValue],
                 vocabulary: Vocabulary, plan: Plan) -> None:  # fmt: skip
        """Write the header.

        Args:
            path: file to write.
            graph: llama.cpp's architecture.
            metadata: full keys and values.
            vocabulary: the tokenizer.
            plan: the tensors that will follow.
        """
        self._writer = gguf.GGUFWriter(path, graph)
        for key, value in metadata.items():
            _add_value(self._writer, key, value)
        _add_vocabulary(self._writer, vocabulary)
        for tensor in plan.tensors:
            # gguf takes shapes as numpy has them and stores them reversed
            self._writer.add_tensor_info(
                tensor.rule.target, tensor.shape, np.dtype(np.float32), tensor.n_bytes,
                raw_dtype=gguf.GGMLQuantizationType(tensor.type.id),
            )  # fmt: skip
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        self._pad()

    def write(self, data: NDArray[np.uint8]) -> None:
        """Append bytes of the current tensor."""
        self._file.write(memoryview(data).cast("B"))

    def write_zeros(self, tensor: PlannedTensor) -> None:
        """Write a tensor of zeros, which are zero bytes in every float type."""
        self._file.write(bytes(tensor.n_bytes))

    def end_tensor(self) -> None:
        """Pad to the alignment that the next tensor starts at."""
        self._pad()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()

    @property
    def _file(self) -> IO[bytes]:
        files = self._writer.fout
        if not files:
            raise OutputError("the output is closed")
        return files[0]

    def _pad(self) -> None:
        self._writer.write_padding(self._file, self._file.tell())


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
