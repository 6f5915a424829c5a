"""A hub of local folders on 127.0.0.1, for the real huggingface_hub client, with faults to switch.

Routes and headers are those of huggingface.co: ``/api/models/{id}/revision/{revision}?blobs=true``
and ``/{id}/resolve/{revision}/{file}``, which sends the weights' reader on to another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_CHUNK = 4096
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")


@dataclass(frozen=True)
class Request:
    """What a client asked for. ``file`` is set for the content of a file."""

    method: str
    path: str
    headers: Mapping[str, str]
    file: str = ""
    cdn: bool = False

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Faults:
    """What goes wrong; a count says how often it does, before all is well."""

    cut_after: int = 0  # bytes of a file, then the connection breaks
    cuts: int = 0
    status: int = 0
    failures: int = 0
    corrupt: int = 0  # files whose content comes with a flipped byte
    delay: float = 0.0  # seconds between 4 KB of a file
    no_ranges: bool = False
    only: str = r"\.(safetensors|bin)$"  # the files that cuts, failures and corruption concern
    loop: bool = False  # weights are sent on to where they are asked for
    listing: bytes = b""  # in place of the list of files
    endless: str = ""  # of what paths the body goes on without an end
    token: str = ""  # without it, no repository is there
    gated: bool = False


@dataclass
class HubServer:
    """A running server. ``repositories`` maps an id and a revision to a folder."""

    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    salt: str = ""  # another one gives every revision another commit
    requests: list[Request] = field(default_factory=list)
    on_request: Callable[[Request], None] = lambda request: None
    on_bytes: Callable[[int], None] = lambda n_bytes: None
    endless_bytes: int = 0  # sent of bodies without an end
    errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def files(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [request.file for request in self.requests if request.file and not request.cdn]

    def ranges(self, file: str) -> list[str]:
        """The ranges that were asked for of a file, in order."""
        return [r.range for r in self.requests if r.file == file and not r.cdn]

    def resolve(self, repository: str, revision: str) -> tuple[Path, str] | None:
        """The folder and the commit of a revision."""
        for name, folder in self.repositories.get(repository, {}).items():
            commit = commit_of(repository, name + self.salt)
            if revision in (name, commit):
                return folder, commit
        return None


def commit_of(repository: str, revision: str) -> str:
    """The commit hash that the server gives a revision."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def listing(repository: str, folder: Path, commit: str) -> dict[str, Any]:
    """A repository as the API lists it."""
    siblings = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {
            "rfilename": path.relative_to(folder).as_posix(), "size": len(data), "blobId": blob,
        }  # fmt: skip
        if path.suffix in _WEIGHTS:
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
        siblings.append(entry)
    return {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that is killed resets its connection
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        cdn = re.fullmatch(r"/cdn/(?P<id>[^/]+/[^/]+)/(?P<rev>[^/]+)/(?P<file>.+)", path)
        file = re.fullmatch(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", path)
        api = re.fullmatch(r"/api/models/(?P<id>[^/]+/[^/]+?)(?:/revision/(?P<rev>.+))?", path)
        match = cdn or file or api
        headers = {key.lower(): value for key, value in self.headers.items()}
        name = match["file"] if match and match is not api else ""
        request = Request(self.command, self.path, headers, name, cdn is not None)
        self.server_of.requests.append(request)
        try:
            self.server_of.on_request(request)
        except BaseException as error:  # a test's own assertion: it is raised there
            self.server_of.errors.append(error)
        if match is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
        elif not cdn and self._refused():
            pass
        else:
            self._serve(match["id"], match["rev"] or "main", name, cdn is not None)

    def _refused(self) -> bool:
        faults = self.server_of.faults
        known = faults.token and self.headers.get("authorization") == f"Bearer {faults.token}"
        if faults.gated and not known:
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif faults.token and not known:
            self._answer(401, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def _serve(self, repository: str, revision: str, name: str, cdn: bool) -> None:
        server, faults = self.server_of, self.server_of.faults
        found = server.resolve(repository, revision)
        if repository not in server.repositories:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        if found is None:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        folder, commit = found
        if not name and faults.listing:
            return self._answer(200, {}, faults.listing)
        if not name:
            return self._answer(200, {}, json.dumps(listing(repository, folder, commit)).encode())
        path = folder / name
        if not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        if faults.failures and re.search(faults.only, name):
            faults.failures -= 1
            return self._answer(faults.status, {})
        if faults.loop and path.suffix in _WEIGHTS:
            return self._answer(302, {"Location": self.path})
        if not cdn and path.suffix in _WEIGHTS:
            # another host to the client, so that it keeps its token to itself
            place = f"http://localhost:{server.port}/cdn/{repository}/{revision}/{name}"
            linked = {
                "X-Linked-Etag": hashlib.sha256(path.read_bytes()).hexdigest(),
                "X-Linked-Size": str(path.stat().st_size),
            }
            return self._answer(302, {"Location": place, "X-Repo-Commit": commit, **linked})
        return self._send_file(path, commit)

    def _send_file(self, path: Path, commit: str) -> None:
        faults = self.server_of.faults
        data = path.read_bytes()
        concerned = re.search(faults.only, path.name)
        if faults.corrupt and concerned:
            faults.corrupt -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob}"'}
        status = 200
        if wanted and not faults.no_ranges:
            begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if begin >= len(data):
                return self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{min(end, len(data) - 1)}/{len(data)}"
            data, status = data[begin : end + 1], 206
        whole = len(data)
        if faults.cuts and concerned and whole > faults.cut_after:
            faults.cuts -= 1
            data = data[: faults.cut_after]
        return self._answer(status, headers, data, whole)

    def _answer_without_end(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.close_connection = True
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(data)
            for _ in range(1 << 12):  # 4 GB: what reads all of it is seen
                self.wfile.write(b" " * (1 << 20))
                self.server_of.endless_bytes += 1 << 20
        except OSError:
            pass

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes = b"", whole: int | None = None
    ) -> None:
        if self.server_of.faults.endless and re.search(self.server_of.faults.endless, self.path):
            return self._answer_without_end(status, headers, data)
        self.send_response(status)
        length = len(data) if whole is None else whole
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for at in range(0, len(data), _CHUNK):
                self.wfile.write(data[at : at + _CHUNK])
                if status == 206 or whole is not None:
                    self.server_of.on_bytes(len(data[at : at + _CHUNK]))
                    time.sleep(self.server_of.faults.delay)
        except OSError:
            self.close_connection = True
        if len(data) < length:
            self.close_connection = True
