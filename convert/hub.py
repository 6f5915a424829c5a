"""Talk to the Hugging Face hub: list a repository, read part of a file, download one.

Everything goes through huggingface_hub's own client and addresses, so that ``HF_ENDPOINT``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``, proxies and certificates work as everywhere else. The loop that
downloads is ours, for two things that hf_hub_download lacks: it resumes in a later process, and it
compares the content with the hash that the hub gives.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from infer_os.files import take_name

from .errors import (
    ConvertError,
    DownloadError,
    FileFormatError,
    SourceError,
    UnknownModel,
    UnreachableError,
)
from .plain_file import parse_object
from .source import HubSource

_CHUNK = 1 << 20
_MOST_FILES = 100_000
# even a listing of very many files is smaller
_LARGEST_LISTING = 32 << 20
_MOST_REDIRECTIONS = 10
#: Seconds to wait after each attempt that brings no bytes, then give up. Any byte starts over.
RETRY_WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
_TRANSIENT = (408, 429, 500, 502, 503, 504)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; ``sha256`` of its content, or git's ``blob`` hash of a small one."""

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit: its top-level files."""

    id: str
    commit: str
    files: Mapping[str, HubFile]


class _Interrupted(Exception):
    """A connection that broke, or a server that asks to come back later."""


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def list_repository(source: HubSource) -> Repository:
    """Resolve the revision to a commit and list the files with sizes and hashes.

    Raises:
        SourceError: no such repository or revision, or one that needs a token.
        UnreachableError: the hub does not answer.
        DownloadError: it does not answer as a hub does.
    """
    from huggingface_hub import constants

    _check_endpoint(constants.ENDPOINT)
    place = f"{constants.ENDPOINT}/api/models/{source.repository}"
    if source.revision is not None:
        place += f"/revision/{quote(source.revision, safe='')}"

    def ask() -> bytes:
        data = bytearray()
        with _open_response(place, {"blobs": "true"}) as response:
            for chunk in response.iter_bytes():
                data.extend(chunk)
                if len(data) > _LARGEST_LISTING:
                    raise _strange(source, f"its list of files has over {_LARGEST_LISTING} bytes")
        return bytes(data)

    return _read_listing(source, _retrying(source.repository, source.revision, ask, listing=True))


def _read_listing(source: HubSource, data: bytes) -> Repository:
    """The repository that the hub's answer describes."""
    from huggingface_hub.hf_api import ModelInfo

    try:
        make: Any = ModelInfo
        info = make(**parse_object("the list of files", data))
        files = {}
        for entry in (info.siblings or [])[:_MOST_FILES]:
            # subfolders hold ready GGUF files and other frameworks', never a checkpoint's own
            strange = "/" in entry.rfilename and not entry.rfilename.endswith(".gguf")
            if strange or type(entry.size) is not int or entry.size < 0:
                continue
            sha256 = entry.lfs.sha256 if entry.lfs else None
            files[entry.rfilename] = HubFile(entry.rfilename, entry.size, sha256, entry.blob_id)
    except (ValueError, KeyError, TypeError, AttributeError, FileFormatError) as error:
        raise _strange(source, str(error)) from error
    commit = str(info.sha or "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise DownloadError(f"{source.repository}: the hub names no commit, but {commit[:60]!r}")
    name = str(info.id or source.repository)
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name):
        raise _strange(source, f"it calls the model {name[:60]!r}")
    return Repository(name, commit, files)


def _strange(source: HubSource, reason: str) -> DownloadError:
    from huggingface_hub import constants

    return DownloadError(
        f"{source.repository}: {constants.ENDPOINT} does not answer as the hub does: {reason}"
    )


def _check_endpoint(address: str) -> None:
    """Refuse an address that no request can be sent to, instead of retrying it."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        given = f"HF_ENDPOINT {address}" if address else "HF_ENDPOINT is set, but empty"
        raise SourceError(
            f"{given}: expected an address such as https://huggingface.co; unset it for that one"
        )


def read_start(repository: Repository, file: HubFile, n_bytes: int) -> bytes:
    """The first ``n_bytes`` of a file (all of it, if it is shorter), by a range request.

    Raises:
        SourceError: the hub refuses the file.
        DownloadError: the connection failed repeatedly.
    """

    wanted = min(n_bytes, file.size)
    data = bytearray()

    def ask() -> bytes:
        with _stream(repository, file, f"bytes={len(data)}-{wanted - 1}") as response:
            if response.status_code != 206:
                data.clear()
            # a server without ranges sends everything: stop where we have enough
            for chunk in response.iter_bytes():
                data.extend(chunk)
                if len(data) >= wanted:
                    break
        if len(data) < wanted:
            raise _Interrupted(f"{len(data)} of {wanted} bytes came")
        return bytes(data[:wanted])

    return _retrying(repository.id, repository.commit, ask, file.name)


def download(
    repository: Repository, file: HubFile, target: Path, progress: Callable[[int], None]
) -> None:
    """Download a file; it gets the name ``target`` once its size and hash are right.

    Until then the bytes are in ``{target}.incomplete``, from which the next call, in this or
    another process, continues by a range request. After a wrong hash it starts over once.

    Args:
        repository: where it is.
        file: what to download.
        target: the file to make.
        progress: called with bytes received (negative: thrown away).

    Raises:
        SourceError: the hub refuses the file.
        DownloadError: no connection, no disk space, or the content is wrong twice.
    """
    # not a new_file: what came before an end of any kind stays, to continue from
    part = target.with_name(f"{target.name}.incomplete")
    for attempt in (1, 2):
        digest = _Digest(file)
        try:
            with part.open("r+b" if part.exists() else "w+b") as handle:
                _fill(repository, file, handle, digest, progress)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise DownloadError(
                f"{part}: cannot be written: {error.strerror or error}; what came so far is kept, "
                "run the same command again to continue"
            ) from error
        if digest.is_right():
            take_name(part, target)
            return
        part.unlink()
        progress(-file.size)
        if attempt == 2:
            raise DownloadError(
                f"{repository.id}: {file.name} came twice with the wrong hash {digest.found()}, "
                f"expected {digest.expected}; the server or a proxy damages it, or the endpoint "
                "holds another file"
            )


def has_content(file: HubFile, path: Path) -> bool:
    """Whether a small local file exists with the content that the hub states."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = _Digest(file)
    digest.update(path.read_bytes())
    return digest.is_right()


def _fill(
    repository: Repository,
    file: HubFile,
    handle: Any,
    digest: _Digest,
    progress: Callable[[int], None],
) -> None:
    """Fill an open file to its full size; the digest sees every byte once, in order."""
    n_there = 0
    while chunk := handle.read(_CHUNK):
        digest.update(chunk)
        n_there += len(chunk)
    if n_there > file.size:
        n_there = _restart(handle, digest)
    progress(n_there)
    failures = 0
    while n_there < file.size:
        before = n_there
        try:
            with _stream(repository, file, f"bytes={n_there}-" if n_there else None) as response:
                if n_there and response.status_code != 206:
                    progress(-n_there)  # no ranges here: everything comes again
                    n_there = _restart(handle, digest)
                # unbuffered: a partly filled chunk would be lost with the connection
                for chunk in response.iter_bytes():
                    piece = chunk[: file.size - n_there]
                    handle.write(piece)
                    digest.update(piece)
                    n_there += len(piece)
                    progress(len(piece))
                    if n_there == file.size:  # a server may send more, endlessly
                        break
            if n_there < file.size:
                raise _Interrupted(f"the connection ended at byte {n_there} of {file.size}")
        except _Interrupted as error:
            handle.flush()
            failures = 0 if n_there > before else failures + 1
            _wait(repository.id, failures, error, file.name)


def _restart(handle: Any, digest: _Digest) -> int:
    handle.seek(0)
    handle.truncate()
    digest.reset()
    return 0


class _Digest:
    """The hash of a file, of the kind that the hub gives for it."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.expected = file.sha256 or file.blob
        self.reset()

    def reset(self) -> None:
        if self._file.sha256:
            self._hash = hashlib.sha256()
        else:  # git's object id: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
            self._hash = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def found(self) -> str:
        return self._hash.hexdigest()

    def is_right(self) -> bool:
        return self.expected is None or self.found() == self.expected


@contextmanager
def _stream(repository: Repository, file: HubFile, byte_range: str | None) -> Iterator[Any]:
    """An open response for a file at the commit; ``_Interrupted`` if the failure may pass."""
    from huggingface_hub import constants, hf_hub_url

    url = hf_hub_url(
        repository.id, file.name, revision=repository.commit, endpoint=constants.ENDPOINT
    )
    with (
        _translated(repository.id, repository.commit, file.name),
        _open_response(url, byte_range=byte_range) as response,
    ):
        yield response


@contextmanager
def _open_response(
    url: str, params: Mapping[str, str] | None = None, byte_range: str | None = None
) -> Iterator[Any]:
    """An open, unread answer of the hub.

    The client would read the bodies of redirections and errors to their end, if they have one.

    Raises:
        SourceError: too many redirections.
        HfHubHTTPError: the hub refuses; errors of the client likewise.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    session = get_session()
    # identity: offsets count the file's own bytes
    headers = {**build_hf_headers(library_name="infer-os"), "Accept-Encoding": "identity"}
    if byte_range:
        headers["Range"] = byte_range
    request = session.build_request(
        "GET", url, headers=headers, params=params, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    for _ in range(_MOST_REDIRECTIONS):
        response = session.send(request, stream=True, follow_redirects=False)
        try:
            following = response.next_request
            if following is None:
                if response.status_code >= 400:
                    hf_raise_for_status(_without_body(response))
                yield response
                return
            request = following
        finally:
            response.close()
    raise SourceError(f"{url}: is redirected again and again; check HF_ENDPOINT")


def _without_body(response: Any) -> Any:
    said = {k: v for k, v in response.headers.items() if k.lower().startswith("x-")}
    return type(response)(response.status_code, headers=said, request=response.request)


def _retrying(
    repository: str,
    revision: str,
    ask: Callable[[], _Result],
    name: str = "",
    *,
    listing: bool = False,
) -> _Result:
    """Ask until an answer comes; a ``listing`` gives up at once if nothing answers at all."""
    failures = 0
    while True:
        try:
            with _translated(repository, revision, name):
                return ask()
        except _Interrupted as error:
            # refused, or no such host: httpx and httpx2 use one name for both
            if listing and type(error.__cause__).__name__ == "ConnectError":
                from huggingface_hub import constants

                raise UnreachableError(
                    f"{repository}: no answer from {constants.ENDPOINT} ({error}), and there is no "
                    "folder of that name; check the name, the network and HF_ENDPOINT"
                ) from error
            failures += 1
            _wait(repository, failures, error, name, UnreachableError if listing else DownloadError)


def _wait(
    repository: str,
    failures: int,
    error: Exception,
    name: str,
    failure: type[DownloadError] = DownloadError,
) -> None:
    """Wait before the next attempt; raises after enough attempts."""
    if failures > len(RETRY_WAITS):
        from huggingface_hub import constants

        what = f"{repository}: {name}" if name else repository
        raise failure(
            f"{what}: no answer from {constants.ENDPOINT} after {failures} attempts ({error}); "
            "check the network and HF_ENDPOINT, then run the same command again to continue"
        ) from error
    time.sleep(RETRY_WAITS[max(failures - 1, 0)])


@contextmanager
def _translated(repository: str, revision: str, name: str) -> Iterator[None]:
    """Turn every failure of the client into one of ours, or into ``_Interrupted``."""
    from huggingface_hub import errors

    # httpx in huggingface_hub 1, httpx2 in 2: the base of HfHubHTTPError is its base error
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except (ConvertError, _Interrupted):
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _TRANSIENT:
            raise _Interrupted(f"HTTP status {status}") from error
        raise _refusal(error, repository, revision, name) from error
    except http_error as error:
        reason = str(error) or type(error).__name__
        raise _Interrupted(reason) from error


def _refusal(error: Any, repository: str, revision: str, name: str) -> SourceError:
    """An error with one line on what the hub refuses, and what would work."""
    from huggingface_hub import constants, errors

    status = error.response.status_code
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{repository}: a gated model: accept its terms at {page}, then set HF_TOKEN to a "
            "token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(f"{repository}: no revision {revision!r} on {constants.ENDPOINT}")
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 404 and not name):
        return UnknownModel(
            f"{repository}: no such model on {constants.ENDPOINT}, or a private one: check the "
            "name, or set HF_TOKEN to a token that may read it",
            repository,
        )
    if status in (401, 403):
        return SourceError(
            f"{repository}: {page} refuses the token (status {status}); check HF_TOKEN"
        )
    what = f"{repository}: {name}" if name else repository
    return SourceError(f"{what}: {constants.ENDPOINT} refuses it (status {status})")
