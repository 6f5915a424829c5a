"""Who may ask: keys, hosts and origins, in front of every address.

A server without a key is for this machine alone. A web page that some browser on it shows must not
use it unasked: so a request of another origin is refused, and so is one that names a host which is
not this machine, as a page does that lets its own name lead here (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from functools import lru_cache

from starlette.datastructures import Headers

from .errors import ApiError
from .settings import ServeSettings, is_loopback

#: What needs no key: whether the server lives, and the page, which asks for the key itself.
OPEN = frozenset({"/", "/health", "/chat.js", "/chat.css", "/favicon.ico"})


class Gate:
    """Lets requests in or not."""

    def __init__(self, settings: ServeSettings) -> None:
        self._key = _digest(settings.api_key) if settings.api_key else b""
        self._cors = settings.cors
        self._names_host = is_loopback(settings.host) and not settings.api_key

    def check(self, path: str, headers: Headers) -> None:
        """Let a request in.

        Raises:
            ApiError: it may not come in (401, 403).
        """
        host = headers.get("host", "")
        if self._names_host and not _names_loopback(host):
            raise ApiError(
                f"this server is for its own machine alone, and {host[:100]!r} is another name",
                403,
            )
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, host):
            raise ApiError(f"web pages of {origin[:100]!r} may not ask here; see --cors", 403)
        if self._key and path not in OPEN:
            self._check_key(headers.get("authorization", ""))

    def _allows(self, origin: str, host: str) -> bool:
        return "*" in self._cors or origin in self._cors or origin.partition("://")[2] == host

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise ApiError(
                "this server wants a key: Authorization: Bearer KEY", 401, code="no_api_key"
            )
        # hashes have one length, and are compared in one time
        if not hmac.compare_digest(_digest(key.strip()), self._key):
            raise ApiError("the key is not this server's", 401, code="invalid_api_key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@lru_cache(64)
def _names_loopback(host: str) -> bool:
    """Whether a host is this machine; every request of a client names the same one."""
    return is_loopback(_name_of(host))


def _name_of(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.partition(":")[0]
    return host
