"""A conversation in a file: its tokens, its turns, its style and its KV rows.

A file is continued only if this user's infer-os wrote it, for the same model and the same
llama.cpp: llama.cpp reads a saved state with little checking (CVE-2026-43629), so nothing else may
reach it. Every part carries a keyed BLAKE2b hash (RFC 7693). Its key, 32 random bytes, is in
``session.key`` in the cache folder, readable only by its owner; without it the sessions are lost.
Layout, numbers little-endian:

    16 bytes magic, u32 format version, u32 length of the header
    header: JSON (see :class:`Header`)
    32 bytes hash of all the above
    for each batch of tokens: rows as llama.cpp saves them, 32 bytes hash of the batch's number,
    the header's hash and the rows

The model is known by a hash of its GGUF header, its size, and 4 KiB from the middle of each tensor:
that distinguishes fine-tunes of one model without reading gigabytes. It does not protect against
somebody who builds two models to collide.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from infer_os.files import new_file, write_file
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.kv_state import KvFormat, KvGeometry, kv_geometry
from infer_os.native.library import llama_version

from ..errors import PromptError, SessionError, SessionUnwritten, SettingsError, TemplateFailure
from ..interface import Engine, shared_prefix
from ..kv.staged import SavedRows
from .frame import Turn
from .framing import make_frame
from .session import Session, SessionRecord
from .session_place import place_of

_MAGIC = b"INFEROS-SESSION\0"
_VERSION = 2
_PREFIX = struct.Struct("<16sII")
_HASH_BYTES = 32
_LONGEST_HEADER = 64 << 20
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Header:
    """What a session file says before its rows. ``batch`` tokens share a state, the last fewer.

    A turn is a message and the tokens of its reply.
    """

    model: str
    model_name: str
    llama: str
    type_k: str
    type_v: str
    rotates: bool
    batch: int
    tokens: list[int]
    style: str
    system: str
    turns: list[tuple[str, list[int]]]


class RowKeeper(Protocol):
    """Whoever holds the rows of a sequence of the model at ``path``."""

    @property
    def path(self) -> Path:
        """The GGUF file."""

    @property
    def adapter(self) -> str:
        """See :meth:`Engine.adapter_identity`."""

    def export_rows(self, n_tokens: int) -> tuple[KvFormat, Iterator[SavedRows]]:
        """See :meth:`Engine.export_rows`."""

    def restore(self, tokens: Sequence[int], form: KvFormat, batches: Iterator[SavedRows]) -> None:
        """See :meth:`Engine.restore`."""


class EngineRows:
    """An engine as the keeper of its rows."""

    def __init__(self, engine: Engine, path: Path | None = None) -> None:
        """``path`` is the model's, if the engine does not say it."""
        self.path = path or engine.info.path
        self.adapter = engine.adapter_identity
        self.export_rows, self.restore = engine.export_rows, engine.restore


def save_session(path: Path, session: Session, model: Path, cache_folder: Path) -> int:
    """Write a conversation; the file appears when it is complete. Returns its size in bytes.

    Args:
        path: the file; replaced if it is already a session file.
        session: the conversation.
        model: the GGUF file that its engine runs.
        cache_folder: where the key is.

    Raises:
        SessionError: it cannot be written, or another kind of file is in the way.
        StateError: llama.cpp saves an unexpected layout.
    """
    check_name(path)
    # what was forgotten, or cut off a reply, may still be in the cache
    tokens = session.tokens()
    del tokens[shared_prefix(session.engine.tokens, tokens) :]
    model_id = name_model(model)
    rows = EngineRows(session.engine)
    return write_rows(path, rows, session.record(), model_id, tokens, cache_folder)


def save_turns(path: Path, session: Session, model_id: str, cache_folder: Path) -> int:
    """Write a conversation without its rows: a small file, quickly. See :func:`save_session`.

    Args:
        path: the file.
        session: the conversation.
        model_id: the result of :func:`name_model` for its model.
        cache_folder: where the key is.
    """
    check_name(path)
    rows = EngineRows(session.engine)
    return write_rows(path, rows, session.record(), model_id, [], cache_folder)


def name_model(model: Path) -> str:
    """How a session identifies its model: see :func:`model_hash`."""
    return model_hash(read_gguf_header(model))


def write_rows(
    path: Path, keeper: RowKeeper, record: SessionRecord, model_id: str, tokens: list[int],
    cache_folder: Path, magic: bytes = _MAGIC,
) -> int:  # fmt: skip
    """Write the rows of the first tokens that a keeper holds; returns the file's bytes.

    Args:
        path: the file, which appears when it is complete.
        keeper: which holds ``tokens``, perhaps followed by others.
        record: what else is written.
        model_id: the result of :func:`name_model`.
        tokens: empty for a file without rows.
        cache_folder: where the key is.
        magic: 16 bytes that say what kind of file it is.

    Raises:
        SessionError: it cannot be written.
        StateError: llama.cpp saves an unexpected layout.
    """
    key = _read_key(cache_folder)
    form, batches = keeper.export_rows(len(tokens))
    first = next(batches, None) if tokens else None
    header = Header(
        _with_adapter(model_id, keeper), keeper.path.name, llama_version(),
        form.type_k, form.type_v, form.rotates,
        first.n_cells if first else 0, tokens,
        record.style, record.system, [(turn.message, list(turn.reply)) for turn in record.turns],
    )  # fmt: skip
    text = json.dumps(asdict(header), separators=(",", ":")).encode()
    with place_of(path, cache_folder) as place:
        with _complaining(path), new_file(path, part=place.part, mode=0o600) as file:
            start = _PREFIX.pack(magic, _VERSION, len(text)) + text
            tag = _tag(key, start)
            file.write(start + tag)
            rows, number = first, 0
            while rows is not None:
                file.write(rows.state.data)
                file.write(_batch_tag(key, tag, number, rows.state.data))
                rows, number = next(batches, None), number + 1
            n_bytes = file.tell()
        place.saw()
    return n_bytes


def load_session(path: Path, session: Session, model: Path, cache_folder: Path) -> bool:
    """Continue a saved conversation on ``session`` and its engine.

    Returns whether its rows were there. If only turns are, as after a kill, they are computed with
    the next message.

    Raises:
        SessionError: not one of our sessions, changed, or from another model or llama.cpp.
    """
    _exists(path)
    header = read_rows(
        path, EngineRows(session.engine, model), cache_folder,
        lambda header: _check_style(path, header, session),
    )  # fmt: skip
    turns = tuple(Turn(message, tuple(reply)) for message, reply in header.turns)
    session.resume(SessionRecord(header.style, header.system, turns))
    return bool(header.tokens or not turns)


def read_rows(
    path: Path, keeper: RowKeeper, cache_folder: Path, check: Callable[[Header], None],
    magic: bytes = _MAGIC,
) -> Header:  # fmt: skip
    """Let a keeper hold what a file of :func:`write_rows` has; returns what else is in it.

    Args:
        path: the file.
        keeper: whose cache is replaced.
        cache_folder: where the key is.
        check: called before anything is changed; raises what stands in the way.
        magic: what kind of file it is.

    Raises:
        SessionError: not one of our files, changed, or from another model or llama.cpp.
    """
    key = _read_key(cache_folder)
    try:
        with path.open("rb") as file:
            header, tag = _read_header(path, file, key, magic)
            _check_fits_here(path, header, keeper)
            check(header)
            form = KvFormat(header.type_k, header.type_v, header.rotates)
            geometry = kv_geometry(read_gguf_header(keeper.path))
            batches = _read_batches(path, file, header, (key, tag), geometry)
            keeper.restore(header.tokens, form, batches)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror}") from error
    except PromptError as error:
        raise SessionError(f"{path}: {error}") from error
    return header


def is_session(path: Path, magic: bytes = _MAGIC) -> bool:
    """Whether a file begins like our session files, or those of another kind."""
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def model_hash(header: GgufHeader) -> str:
    """A hash that identifies a model: see the module's docstring.

    Raises:
        SessionError: the model's file can no longer be read.
    """
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    try:
        with header.path.open("rb") as file:
            digest.update(header.file_bytes.to_bytes(8, "little"))
            digest.update(file.read(header.data_offset))
            for tensor in header.tensors:
                middle = max(0, tensor.n_bytes - _SAMPLE_BYTES) // 2
                file.seek(header.data_offset + tensor.offset + middle)
                digest.update(file.read(min(_SAMPLE_BYTES, tensor.n_bytes)))
    except OSError as error:
        raise SessionError(f"{header.path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


# ---- reading


def _read_header(path: Path, file: BinaryIO, key: bytes, magic: bytes) -> tuple[Header, bytes]:
    start = file.read(_PREFIX.size)
    if len(start) < _PREFIX.size or not start.startswith(magic):
        raise SessionError(f"{path}: not a session file of infer-os")
    _magic, version, length = _PREFIX.unpack(start)
    if version != _VERSION:
        raise SessionError(
            f"{path}: session format {version}; this infer-os reads format {_VERSION}"
        )
    if length > _LONGEST_HEADER:
        raise _changed(path)
    start += file.read(length)
    tag = file.read(_HASH_BYTES)
    if len(start) != _PREFIX.size + length or not hmac.compare_digest(tag, _tag(key, start)):
        raise _changed(path)
    return Header(**json.loads(start[_PREFIX.size :])), tag


def _changed(path: Path) -> SessionError:
    return SessionError(
        f"{path}: changed or truncated since it was saved, or saved with another session.key: "
        "not continued"
    )


def _with_adapter(model_id: str, keeper: RowKeeper) -> str:
    """How a file identifies the model and the adapter that its rows were computed with."""
    return f"{model_id}+{keeper.adapter}" if keeper.adapter else model_id


def _check_fits_here(path: Path, header: Header, keeper: RowKeeper) -> None:
    model, model_id = keeper.path, name_model(keeper.path)
    is_this = header.model == _with_adapter(model_id, keeper)
    if not is_this and header.model.partition("+")[0] == model_id:
        raise SessionError(
            f"{path}: saved with another adapter on {model.name}, or with none: not continued"
        )
    if not is_this:
        raise SessionError(
            f"{path}: saved with another model ({header.model_name}), not with this {model.name}"
        )
    if header.llama != llama_version():
        raise SessionError(f"{path}: saved by {header.llama}; this is {llama_version()}")


def _check_style(path: Path, header: Header, session: Session) -> None:
    try:
        make_frame(header.style, session.engine)
    except (SettingsError, TemplateFailure) as error:
        raise SessionError(f"{path}: of style {header.style!r}: {error}") from error


def _read_batches(
    path: Path, file: BinaryIO, header: Header, secret: tuple[bytes, bytes], geometry: KvGeometry
) -> Iterator[SavedRows]:
    """Rows, each batch checked before it is passed on; the file must end with the last."""
    key, tag = secret
    form = KvFormat(header.type_k, header.type_v, header.rotates)
    n_tokens = len(header.tokens) if header.batch else 0
    for number, first in enumerate(range(0, n_tokens, max(1, header.batch))):
        n_cells = min(header.batch, n_tokens - first)
        state = np.empty(form.state_bytes(geometry, n_cells), np.uint8)
        got = file.readinto(state.data)  # type: ignore[attr-defined]
        found = file.read(_HASH_BYTES)
        if got != len(state) or not hmac.compare_digest(
            found, _batch_tag(key, tag, number, state.data)
        ):
            raise _changed(path)
        yield SavedRows(first, n_cells, state)
    if file.read(1):
        raise _changed(path)


# ---- hashes and their key


def _tag(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=_HASH_BYTES, person=b"header").digest()


def _batch_tag(key: bytes, header_tag: bytes, number: int, data: memoryview) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=_HASH_BYTES, person=b"rows")
    digest.update(header_tag + number.to_bytes(8, "little"))
    digest.update(data)
    return digest.digest()


def _read_key(cache_folder: Path) -> bytes:
    """The user's key, made on first use.

    Raises:
        SessionError: it cannot be made, or others can read it.
    """
    path = cache_folder / "session.key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # two programs may do this at once: the first one's key stays
            write_file(path, secrets.token_bytes(_HASH_BYTES), mode=0o600, replace=False)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(_HASH_BYTES + 1)
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror}; sessions need this key") from error
    if mode & 0o077:
        raise SessionError(f"{path}: others can read it; chmod 600, or delete it and all sessions")
    if len(key) != _HASH_BYTES:
        raise SessionError(f"{path}: not a key of {_HASH_BYTES} bytes; delete it and all sessions")
    return key


# ---- writing


def check_name(path: Path, magic: bytes = _MAGIC, kind: str = "session file") -> None:
    """Check, before any work, that a session, or another kind of file, can be saved here.

    Raises:
        SessionError: another kind of file is in the way, there is no such folder, or no file can
            have that name.
    """
    if _exists(path):
        if not is_session(path, magic):
            raise SessionError(f"{path}: not a {kind} of infer-os; choose another name")
        # a write-protected file must stay, even for root
        if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
            raise SessionError(f"{path}: is write-protected; chmod u+w, or choose another name")
    if not path.absolute().parent.is_dir():
        raise SessionError(f"{path}: there is no folder {path.parent}")


def _exists(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        SessionError: the name is impossible, such as 300 letters or a zero byte, or something
            else has it: opening a pipe would wait for its other end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SessionError(f"{path}: cannot be a session file: {reason}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise SessionError(f"{path}: cannot be a session file: it is {kind}")
    return True


@contextmanager
def _complaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionUnwritten(f"{path}: cannot be written: {error.strerror}") from error
