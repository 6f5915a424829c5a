"""Which heads of requests are taken: what the parser lets pass and HTTP forbids.

In go the parts of a head as the parser found them; out comes the target as a path with a query, or
an error. Two programs that disagree on where a request ends or which host it is for can be made to
take one request for another, so everything that leaves a choice is refused. The parser itself sees
to lengths, chunks, line ends and folded lines. https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import ApiError

_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


def checked_target(
    method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """The target of a request, without the host that it may name (RFC 9112, 3.2).

    Args:
        method: in capital letters.
        target: as it was sent.
        version: of HTTP, such as 1.1.
        headers: names in small letters, and values.

    Raises:
        ApiError: a head that is not taken (400, 501, 505).
    """
    if version not in ("1.0", "1.1"):
        raise ApiError("this server speaks HTTP/1.1", 505)
    if method == b"CONNECT":
        raise ApiError("this server is not a proxy: CONNECT is not supported", 501)
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise ApiError(f"a request has one Host line, and this one has {len(hosts)}")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise ApiError("the Host line names no host")
    encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if encodings and version == "1.0":
        raise ApiError("HTTP/1.0 has no Transfer-Encoding")
    if encodings not in ([], [b"chunked"]):
        raise ApiError("the only Transfer-Encoding here is chunked", 501)
    return _origin_form(method, target, hosts)


def _origin_form(method: bytes, target: bytes, hosts: list[bytes]) -> bytes:
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise ApiError("the target of a request is a path that begins with /")
    host, rest = absolute.groups()
    if hosts and hosts[0].lower() != host.lower():
        raise ApiError("the target names another host than the Host line")
    return rest if rest.startswith(b"/") else b"/" + rest
