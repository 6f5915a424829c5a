"""Write a GGUF file so that it appears only when it is complete.

The header is packed by the ``gguf`` library; tensors are written after it block by block, into a
sibling file that is renamed to the output at the end.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from infer_os.errors import named
from infer_os.files import take_name
from infer_os.models.network import MetadataValue
from infer_os.native import text_rules
from infer_os.native.gguf_file import SPECIAL_NAMES, padded
from infer_os.sizes import size_text

from .added import StatedTokens, stated_tokens
from .conversion_plan import ConversionPlan, PlannedTensor
from .errors import OutputError
from .output_locks import locked
from .tokenizer import GgufVocabulary, TokenType


def check_output(
    path: Path,
    n_bytes: int,
    *,
    force: bool,
    besides: Iterable[tuple[Path, int]] = (),
    source: Path | None = None,
) -> None:
    """Check that a file of about ``n_bytes`` can be written to ``path``.

    A symbolic link to a file is treated as the output itself: ``force`` replaces the link, not the
    file it points to.

    Args:
        path: the output.
        n_bytes: what it needs.
        force: it may replace a file.
        besides: other folders, and the bytes that they need at the same time.
        source: a folder whose files must not be replaced, except a GGUF.

    Raises:
        OutputError: it exists (without ``force``) or is not an ordinary file, its folder does not
            exist or cannot be written, or the disk is too full.
    """
    try:
        exists = os.path.lexists(path)
        kind = path.stat().st_mode if path.exists() else stat.S_IFREG
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    if stat.S_ISDIR(kind):
        raise OutputError(f"{path}: a folder; name a file")
    if not stat.S_ISREG(kind):
        raise OutputError(f"{path}: not an ordinary file, but a device, a pipe or a socket")
    if exists and not force:
        raise OutputError(f"{path}: already exists; --force replaces it")
    if exists and source is not None and _is_of_checkpoint(path, source):
        raise OutputError(f"{path}: a file of the checkpoint {source}; name another output")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder for the output")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path.parent}: the folder cannot be written")
    # the remains of a killed conversion are overwritten or continued
    _check_room(path, [(path.parent, n_bytes - _allocated(part_path(path))), *besides])


def _is_of_checkpoint(path: Path, source: Path) -> bool:
    """Whether a file is the source, or in it, or linked to from there; a GGUF does not count."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return False
        entries = source.iterdir() if source.is_dir() else [source]
        return any(path.samefile(entry) for entry in entries if entry.exists())
    except OSError:  # a dangling link, or unreadable: not part of a checkpoint
        return False


def _check_room(path: Path, needs: list[tuple[Path, int]]) -> None:
    """The output's folder comes first; folders of one disk share its room."""
    totals: dict[int, tuple[Path, int]] = {}
    for folder, n_bytes in needs:
        device = folder.stat().st_dev
        first, before = totals.get(device, (folder, 0))
        totals[device] = first, before + max(n_bytes, 0)
    for folder, n_bytes in totals.values():
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        # a file system without a size, such as /proc, cannot be full: writing will show what it is
        if n_bytes <= free or disk.f_blocks == 0:
            continue
        what = "the disk is too full: the file needs"
        if folder != path.parent:
            what = f"the disk of {folder} is too full: the download needs"
        elif len(needs) > len(totals):
            what = "the disk is too full: the file and the download that it is made from need"
        raise OutputError(
            f"{path}: {what} {size_text(n_bytes, up=True)} and {size_text(free)} are free; nothing "
            "was written"
        )


def part_path(path: Path) -> Path:
    """The sibling that grows until it takes the name ``path``."""
    return path.with_name(f".{path.name}.part")


def _allocated(path: Path) -> int:
    """Bytes that a file occupies on its disk; 0 if there is none."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


@contextmanager
def complete_file(path: Path, *, keep_after: tuple[type[BaseException], ...] = ()) -> Iterator[int]:
    """A handle of a sibling file; renamed to ``path`` if the block succeeds, else removed.

    Unlike :func:`infer_os.files.new_file` it may begin with what is there: what a killed conversion
    left, or one that ended with an error of ``keep_after``. The sibling is locked, so that two
    conversions to one output do not mix.

    Raises:
        OutputError: the sibling cannot be created, is in use, or the disk is full.
    """
    part = part_path(path)
    with locked(part, f"{path}: another conversion is writing it", path) as handle:
        try:
            yield handle
            with named(part):
                os.fsync(handle)
            take_name(part, path)
        except keep_after:
            raise
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and _is_of_output(error, path):
                reason = f"cannot be written: {error.strerror}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    reason = "the disk became full while writing"
                raise OutputError(f"{path}: {reason}; nothing was left behind") from error
            raise


def _is_of_output(error: OSError, path: Path) -> bool:
    """Whether an error is about the file being written, not one being read."""
    if error.filename is None:  # reading fills no disk
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not isinstance(error.filename, str):
        return False
    # a handle's name has no links, and its folder may have been moved
    return Path(error.filename).name in (path.name, part_path(path).name)


def gguf_header(
    graph: str,
    metadata: Mapping[str, MetadataValue],
    vocabulary: GgufVocabulary,
    plan: ConversionPlan,
) -> bytes:
    """Pack everything that precedes the tensors' data, padded to where that begins.

    Args:
        graph: llama.cpp's architecture.
        metadata: full keys and values.
        vocabulary: the tokenizer.
        plan: the tensors, in the order of their data.
    """
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
    return header_bytes(writer)


def header_bytes(writer: Any) -> bytes:
    """Everything that precedes the tensors' data, of a ``GGUFWriter`` without a path."""
    buffer = io.BytesIO()
    # without a path the writer opens nothing: it gets the buffer as its open, empty file
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(buffer, buffer.tell())
    return buffer.getvalue()


class GgufOutput:
    """A GGUF file of its final size, into which tensors are written in any order.

    Bytes that are never written stay zero, which is zero in every float type.
    """

    def __init__(
        self, handle: int, header: bytes, plan: ConversionPlan, *, fresh: bool = True
    ) -> None:
        """Reserve the disk space and write the header, unless the file has both already.

        Raises:
            OSError: the disk is full.
        """
        self._handle = handle
        self._offsets: dict[str, int] = {}
        end = len(header)
        for tensor in plan.tensors:
            self._offsets[tensor.rule.target] = end
            end += padded(tensor.n_bytes)
        self.n_bytes = end
        if fresh:
            self._start(header)

    @classmethod
    def begun(cls, handle: int, header: bytes, plan: ConversionPlan) -> GgufOutput | None:
        """The output that an earlier run began with the same header; None if there is none."""
        output = cls(handle, header, plan, fresh=False)
        there = os.fstat(handle).st_size == output.n_bytes
        return output if there and os.pread(handle, len(header), 0) == header else None

    def _start(self, header: bytes) -> None:
        with named(self._handle):
            os.ftruncate(self._handle, 0)
            os.ftruncate(self._handle, self.n_bytes)
            try:
                os.posix_fallocate(self._handle, 0, self.n_bytes)
            except OSError as error:
                # some file systems cannot reserve; those fill up during writing
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        self._write_at(0, memoryview(header))

    def read(self, tensor: PlannedTensor, at: int, n_bytes: int) -> bytes:
        """The written bytes of a tensor, ``at`` bytes from its start."""
        return os.pread(self._handle, n_bytes, self._offsets[tensor.rule.target] + at)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        with named(self._handle):
            os.fsync(self._handle)

    def write(self, tensor: PlannedTensor, at: int, data: NDArray[np.uint8]) -> None:
        """Write bytes of a tensor, ``at`` bytes from its start."""
        self._write_at(self._offsets[tensor.rule.target] + at, data.data.cast("B"))

    def _write_at(self, offset: int, view: memoryview) -> None:
        with named(self._handle):
            while view:
                n_bytes = os.pwrite(self._handle, view, offset)
                offset, view = offset + n_bytes, view[n_bytes:]


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


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    stated = stated_tokens(vocabulary)
    writer.add_token_types(
        [
            int(TokenType.CONTROL if i in stated.hidden else kind)
            for i, kind in enumerate(vocabulary.types)
        ]
    )
    if vocabulary.model == "t5":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
        writer.add_remove_extra_whitespaces(vocabulary.remove_extra_whitespaces)
        if vocabulary.charsmap:
            writer.add_precompiled_charsmap(vocabulary.charsmap)
    else:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{SPECIAL_NAMES.get(name, name)}_token_id", number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    _add_text_rules(writer, vocabulary, stated)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    if vocabulary.named_templates:
        # not by the library, which writes the names in random order
        for name, template in vocabulary.named_templates.items():
            writer.add_string(f"tokenizer.chat_template.{name}", template)
        writer.add_array("tokenizer.chat_templates", list(vocabulary.named_templates))


def _add_text_rules(writer: Any, vocabulary: GgufVocabulary, stated: StatedTokens) -> None:
    """What the runtime does to text: see :mod:`infer_os.native.text_rules`."""
    if vocabulary.normalizer:
        writer.add_string(text_rules.NORMALIZER_KEY, vocabulary.normalizer)
    if vocabulary.steps:
        writer.add_string(text_rules.NORMALIZERS_KEY, vocabulary.steps)
    if vocabulary.cuts:
        writer.add_string(text_rules.CUTS_KEY, vocabulary.cuts)
    if vocabulary.lowercase:
        writer.add_bool(text_rules.LOWERCASE_KEY, True)
    if vocabulary.prefix_space:
        writer.add_bool(text_rules.PREFIX_SPACE_KEY, True)
    if stated.tokens:
        writer.add_array(text_rules.ADDED_IDS_KEY, stated.ids)
        writer.add_array(text_rules.ADDED_FLAGS_KEY, stated.flags)
