"""Ask a server that runs: for ``ps``, and for ``run``, ``generate`` and ``chat --server``.

In goes a server's address and its key; out come plain values of its JSON, or a text as it is
written.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..runtime.errors import SettingsError
from .errors import ServerFailure

_PATIENCE_S = 10.0
#: Seconds without a word in a stream; a server says every 15 that it is still there.
_STREAM_PATIENCE_S = 60.0
_LARGEST = 1 << 20
#: Statuses of requests that are wrong, whatever the server does.
_USERS_ERRORS = (400, 404, 413)
#: What every server of ours says of itself.
_FIELDS = {
    "model", "file", "source", "context", "parallel", "running", "waiting", "prompt_tokens",
    "shared_tokens", "completion_tokens", "since", "memory",
}  # fmt: skip


def read_status(url: str, key: str) -> dict[str, Any]:
    """What ``/status`` of a server says.

    Args:
        url: of the server, such as http://127.0.0.1:8080.
        key: empty for none.

    Raises:
        SettingsError: that is no address.
        ServerFailure: nobody answers there, or something else does.
    """
    with _answered(url, key, "GET", "/status", None, _PATIENCE_S) as answer:
        value = _value(url, answer.read(_LARGEST))
    if isinstance(value.get("error"), dict):
        raise ServerFailure(f"{url}: {value['error'].get('message')}")
    if not value.keys() >= _FIELDS:
        raise _stranger(url)
    return value


@dataclass(slots=True)
class RemoteAnswer:
    """What a streamed answer said of itself; complete when the stream has ended."""

    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def stream_answer(
    url: str, key: str, path: str, body: dict[str, Any], state: RemoteAnswer
) -> Generator[str, None, None]:
    """The text that a server writes, piece by piece; closing the generator stops the server.

    Args:
        url: of the server, such as http://127.0.0.1:8080.
        key: empty for none.
        path: /v1/completions or /v1/chat/completions.
        body: the request, of one text.
        state: is filled on the way.

    Raises:
        SettingsError: that is no address, or the server refuses the request as wrong.
        ServerFailure: nobody answers there, something else does, or the answer breaks off.
    """
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with _answered(url, key, "POST", path, sent, _STREAM_PATIENCE_S) as answer:
        if answer.status != 200:
            raise _refusal(url, answer.status, _value(url, answer.read(_LARGEST)))
        while line := answer.readline(_LARGEST):
            if not line.startswith(b"data: "):
                continue  # between two events, or a sign of life
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                return
            value = _value(url, data)
            if "error" in value:
                raise _refusal(url, 500, value)
            try:
                yield _note_piece(value, state)
            except (LookupError, TypeError, AttributeError):
                raise _stranger(url) from None
    raise ServerFailure(f"{url}: the answer breaks off")


def _note_piece(value: dict[str, Any], state: RemoteAnswer) -> str:
    """The text of an event, whose other fields go to the state."""
    if value.get("usage"):
        state.prompt_tokens = value["usage"]["prompt_tokens"]
        state.completion_tokens = value["usage"]["completion_tokens"]
    if not value["choices"]:
        return ""
    choice = value["choices"][0]
    state.finish_reason = choice["finish_reason"] or state.finish_reason
    text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    if not isinstance(text, str):
        raise TypeError
    return text


@contextmanager
def _answered(
    url: str, key: str, method: str, path: str, body: dict[str, Any] | None, patience_s: float
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request; the connection is closed afterwards."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme != "http":
        raise SettingsError(f"--server {url}: expected an address such as http://127.0.0.1:8080")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    link = http.client.HTTPConnection(host, port, timeout=patience_s)
    try:
        link.request(method, f"{parts.path.rstrip('/')}{path}", data, headers)
        with link.getresponse() as answer:
            yield answer
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ServerFailure(
            f"{url}: no server answers: {said}; infer-os serve MODEL starts one"
        ) from None
    finally:
        link.close()


def _value(url: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise _stranger(url) from None
    if not isinstance(value, dict):
        raise _stranger(url)
    return value


def _refusal(url: str, status: int, value: dict[str, Any]) -> Exception:
    """The error that an answer stands for."""
    error = value.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return _stranger(url)
    message = f"{url}: {error['message']}"
    return SettingsError(message) if status in _USERS_ERRORS else ServerFailure(message)


def _stranger(url: str) -> ServerFailure:
    return ServerFailure(f"{url}: this is no server of infer-os")
