"""Keep the measured costs of steps, so that the next start need not measure again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infer_os.files import write_file
from infer_os.native.backend import kernel_status

from ..plan.bandwidth import machine_fingerprint
from ..plan.machine import read_cpu, read_memory
from ..settings import EngineSettings

_FILE = "speculative.json"
#: Number of models and settings to keep; the oldest goes first.
_MOST = 64


@dataclass(frozen=True, slots=True)
class CostStore:
    """Where the costs of one model with its settings on this machine are kept."""

    folder: Path
    key: str

    def load(self) -> dict[int, float] | None:
        """The seconds of a batch by its size; None if nothing valid is stored."""
        try:
            costs = {int(n): float(s) for n, s in self._records()[self.key].items()}
        except (KeyError, ValueError, TypeError, AttributeError):
            return None
        sound = all(n >= 1 and math.isfinite(s) and s > 0 for n, s in costs.items())
        return costs if sound and 1 in costs and len(costs) > 1 else None

    def store(self, costs: Mapping[int, float]) -> None:
        """Keep them. A folder that cannot be written only costs measuring again."""
        records = self._records()
        records.pop(self.key, None)
        records[self.key] = {str(n): seconds for n, seconds in costs.items()}
        kept = dict(list(records.items())[-_MOST:])
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / _FILE, json.dumps(kept).encode(), mode=0o600)

    def _records(self) -> dict[str, dict[str, float]]:
        try:
            records = json.loads((self.folder / _FILE).read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return records if isinstance(records, dict) else {}


def cost_store(folder: Path, model: Path, settings: EngineSettings) -> CostStore:
    """Where the costs of a file, loaded with these settings, are kept.

    Raises:
        OSError: there is no such file.
    """
    stat = model.stat()
    text = json.dumps([
        machine_fingerprint(read_cpu(), read_memory()), str(model.resolve()), stat.st_size,
        stat.st_mtime_ns, settings.load, settings.n_threads, settings.kv, settings.kv_budget,
        settings.draft_max, kernel_status(settings.native).variant,
    ])  # fmt: skip
    return CostStore(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
