"""Ask a server that runs: what the commands beside it do.

In goes a server's address and its key; out come plain values of its JSON.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from ..runtime.errors import SettingsError
from .errors import ServerFailure

_PATIENCE_S = 10.0
_LARGEST = 1 << 20
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
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme != "http":
        raise SettingsError(f"--server {url}: expected an address such as http://127.0.0.1:8080")
    link = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    try:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        link.request("GET", f"{parts.path.rstrip('/')}/status", headers=headers)
        answer = link.getresponse()
        value = json.loads(answer.read(_LARGEST))
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ServerFailure(f"{url}: no server answers: {said}") from None
    except ValueError:
        raise ServerFailure(f"{url}: this is no server of infer-os") from None
    finally:
        link.close()
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        raise ServerFailure(f"{url}: {value['error'].get('message')}")
    if not isinstance(value, dict) or not value.keys() >= _FIELDS:
        raise ServerFailure(f"{url}: this is no server of infer-os")
    return value
