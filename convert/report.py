"""What a conversion did, as records that the command line renders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_os.native.quantize import QuantizeStats

from .conversion_plan import ConversionPlan, PlannedTensor


@dataclass(slots=True)
class ClassReport:
    """Tensors that share a role and a type."""

    role: str
    type: str
    n_tensors: int
    n_values: int
    n_bytes: int
    stats: QuantizeStats

    @property
    def bits_per_weight(self) -> float:
        """Bits per value in the file."""
        return 8 * self.n_bytes / self.n_values


@dataclass(frozen=True, slots=True)
class PlacedQuality:
    """A file compared with a finer one on held-out text: ``kl`` in nats per token."""

    perplexity: float
    reference_perplexity: float
    kl: float
    top1: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How much statistics from ``chunks`` chunks of a text helped, used as ``method`` says.

    ``predicted_kl`` is what the types chosen for a size should lose; 0 if none were chosen.
    """

    text: str
    chunks: int
    without: PlacedQuality
    with_weights: PlacedQuality
    method: str = "imatrix"
    predicted_kl: float = 0.0


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A finished conversion, or a plan for one if ``written`` is false."""

    output: Path
    architecture: str
    graph: str
    type: str
    n_params: int
    n_bytes: int
    classes: tuple[ClassReport, ...]
    notes: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    written: bool
    verified: bool = False
    calibration: CalibrationReport | None = None

    @property
    def bits_per_weight(self) -> float:
        """Average over all values in the file."""
        values = sum(row.n_values for row in self.classes)
        return 8 * sum(row.n_bytes for row in self.classes) / values


class ClassTable:
    """Collects one row per role and type, in the order of the plan."""

    def __init__(self, plan: ConversionPlan) -> None:
        self._rows: dict[tuple[str, str], ClassReport] = {}
        for tensor in plan.tensors:
            row = self._row(tensor)
            row.n_tensors += 1
            row.n_values += math.prod(tensor.rule.shape)
            row.n_bytes += tensor.n_bytes

    def add(self, tensor: PlannedTensor, stats: QuantizeStats) -> None:
        """Count a block's errors."""
        self._row(tensor).stats.add(stats)

    def state(self) -> dict[str, list[float]]:
        """The errors so far, as JSON values."""
        return {
            "/".join(key): [
                row.stats.n_values, row.stats.sum_squared_error, row.stats.sum_squared_value,
                row.stats.max_abs_error,
            ]
            for key, row in self._rows.items()
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Continue from a :meth:`state`; false, and no change, if it is not of this plan."""
        rows = {"/".join(key): row for key, row in self._rows.items()}
        if state.keys() != rows.keys():
            return False
        for values in state.values():
            numbers = isinstance(values, list) and len(values) == 4
            if not numbers or not all(isinstance(n, (int, float)) for n in values):
                return False
        for name, (n_values, *errors) in state.items():
            rows[name].stats = QuantizeStats(int(n_values), *errors)
        return True

    def rows(self) -> tuple[ClassReport, ...]:
        """The table."""
        return tuple(self._rows.values())

    def _row(self, tensor: PlannedTensor) -> ClassReport:
        key = (tensor.rule.role.value, tensor.type.name)
        if key not in self._rows:
            self._rows[key] = ClassReport(*key, 0, 0, 0, QuantizeStats())
        return self._rows[key]
