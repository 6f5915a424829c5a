"""Energy of the processor packages, where the kernel provides it (RAPL).

https://docs.kernel.org/power/powercap/powercap.html: ``energy_uj`` counts microjoules and wraps
around at ``max_energy_range_uj``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FOLDER = "sys/class/powercap"
#: Packages alone: a zone with two numbers, intel-rapl:0:0, is a part of one.
_ZONES = "intel-rapl:[0-9]*"


@dataclass(frozen=True, slots=True)
class EnergyZone:
    """A counter of one package, and where it wraps around."""

    counter: Path
    limit: int


def find_zones(root: Path = Path("/")) -> tuple[tuple[EnergyZone, ...], str]:
    """The packages whose energy can be read; if there are none, the reason."""
    folders = sorted((root / _FOLDER).glob(_ZONES))
    packages = [folder for folder in folders if folder.name.count(":") == 1]
    if not packages:
        return (), "this machine has no RAPL counters in /sys/class/powercap"
    zones = []
    for folder in packages:
        try:
            limit = int((folder / "max_energy_range_uj").read_text())
            int((folder / "energy_uj").read_text())
        except (OSError, ValueError):
            return (), f"/{folder.relative_to(root) / 'energy_uj'} cannot be read by this user"
        zones.append(EnergyZone(folder / "energy_uj", limit))
    return tuple(zones), ""


class EnergyMeter:
    """Joules between two readings of the counters, less than one wrap apart."""

    def __init__(self, zones: tuple[EnergyZone, ...]) -> None:
        self._zones = zones
        self._before = self._read()

    def _read(self) -> list[int]:
        return [int(zone.counter.read_text()) for zone in self._zones]

    def lap(self) -> float:
        """Joules since the last call."""
        now = self._read()
        spent = [
            (after - before) % (zone.limit + 1)
            for zone, before, after in zip(self._zones, self._before, now, strict=True)
        ]
        self._before = now
        return sum(spent) / 1e6
