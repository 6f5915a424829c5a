"""The page to chat on: three files of the package, sent as they are.

Nothing of it comes from another host, and its Content-Security-Policy lets nothing else in: no
script but its own file, no style but its own, no address but this server's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page_files"
_FILES = {
    "/": ("chat.html", "text/html"), "/chat.js": ("chat.js", "text/javascript"),
    "/chat.css": ("chat.css", "text/css"), "/favicon.ico": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_responses() -> Iterator[tuple[str, Callable[[Request], Awaitable[Response]]]]:
    """Addresses of the page, each with what answers there."""
    for path, (name, kind) in _FILES.items():
        yield path, _sender((_FOLDER / name).read_bytes(), kind)


def _sender(data: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}

    async def send(request: Request) -> Response:
        return Response(data, media_type=kind, headers=headers)

    return send
