"""Settings of the server, as a record that checks itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from infer_os.fields import check_fields, number, text, texts, whole

from ..runtime.errors import SettingsError

_MOST_WAITING = 100_000
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is reached from this machine alone."""
    import ipaddress  # every command reads this file

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in _LOCAL_NAMES


_SERVE = {
    "host": text(bool, "a name or an address"),
    "port": whole(0, 65535, "0 (any free one) to 65535"),
    "queue": whole(0, _MOST_WAITING, f"0 to {_MOST_WAITING}"),
    "api_key": text(),
    "idle": number(lambda s: 0 <= s < math.inf, "0 or more seconds"),
    "cors": texts(
        lambda origins: all("://" in o or o == "*" for o in origins),
        "an origin such as https://example.org, or *",
    ),
}


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Where the server listens, and whom it lets in.

    ``queue`` is how many texts may wait besides those that are computed. Without an ``api_key``
    anyone may ask, who can reach it: then ``host`` is this machine alone. Web pages of the origins
    in ``cors`` may ask as well. A model that nobody uses for ``idle`` seconds is unloaded; with 0
    only when another one needs its memory.

    Raises:
        SettingsError: a value of another type or out of its range, or a door without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    queue: int = 256
    api_key: str = ""
    cors: tuple[str, ...] = ()
    idle: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, _SERVE, SettingsError)
        if not is_loopback(self.host) and not self.api_key:
            raise SettingsError(
                f"{self.host}: other machines could use it; give --api-key-file, or set "
                "INFER_OS_API_KEY",
                "host",
            )
