"""The form of every figure: a row with its spread, and the place where it was measured.

Goes in: single measurements. Comes out: rows, as JSON lines or back from them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import infer_os
from infer_os.native.library import llama_version

Label = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Place:
    """What was run, and where. ``commit`` is None outside a checkout."""

    command: str
    commit: str | None
    versions: tuple[tuple[str, str], ...]
    cpu: str
    threads: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One value of one repeat. Those of the same metric and labels become one row."""

    metric: str
    unit: str
    value: float
    labels: tuple[tuple[str, Label], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: the median of ``repeats`` values with their first and third quartile."""

    metric: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int
    model: str
    labels: Mapping[str, Label] = field(default_factory=dict)

    def label(self, name: str, default: Label = "") -> Label:
        """One of its labels."""
        return self.labels.get(name, default)


def make_place(command: str, cpu: str, threads: int) -> Place:
    """The place of a run that starts now."""
    packages = [("infer-os", infer_os.__version__), ("llama.cpp", llama_version())]
    for name in ("llama-cpp-python", "numpy"):
        try:
            packages.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return Place(command, checkout_commit(), tuple(packages), cpu, threads)


def checkout_commit() -> str | None:
    """The commit of the checkout that holds this code, with a ``+`` if it was changed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or None


def make_rows(measurements: Iterable[Measurement], model: str) -> list[Row]:
    """Rows, in the order of their first values."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.metric, one.unit, one.labels), []).append(one)
    rows = []
    for group in groups.values():
        low, middle, high = np.percentile([one.value for one in group], [25, 50, 75])
        first = group[0]
        rows.append(
            Row(first.metric, first.unit, float(middle), float(low), float(high), len(group),
                model, dict(first.labels))
        )  # fmt: skip
    return rows


def row_json(row: Row, place: Place) -> dict[str, object]:
    """A row with its place, as one JSON object."""
    values = asdict(row)
    where = asdict(place)
    where["versions"] = dict(place.versions)
    return values | where


def json_lines(rows: Sequence[Row], place: Place) -> str:
    """All rows, one per line."""
    return "".join(json.dumps(row_json(row, place)) + "\n" for row in rows)


def select(rows: Iterable[Row], metric: str, **labels: Label) -> list[Row]:
    """The rows of a metric that have these labels."""
    return [
        row for row in rows
        if row.metric == metric and all(row.labels.get(k) == v for k, v in labels.items())
    ]  # fmt: skip
