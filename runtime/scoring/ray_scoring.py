"""Scoring on more than one machine: as a batch on a cluster, with a scorer on each node.

Goes in: the address of a running Ray cluster, and how a node opens its scorer. Blocks, lost workers
and reports are those of :mod:`..batch.ray_backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..batch.ray_backend import RayBatch, Worker, own_versions
from ..batch.records import BadRecord, ValueParser
from .score_records import (
    ScoreParser,
    ScoreRecord,
    ScoreResult,
    score_result_of,
    score_value_of,
)
from .scorer import Scorer

#: Opens a node's scorer, on the node; a function that can be pickled.
OpenScorer = Callable[[], Scorer]


class RayScores(RayBatch):
    """A cluster that scores records. A context manager."""

    def __init__(self, address: str, open_scorer: OpenScorer) -> None:
        """Connect to a cluster.

        Args:
            address: ``HOST:PORT`` of its head, or ``auto`` for the one that this machine is in.
            open_scorer: opens a scorer on a node.

        Raises:
            SettingsError: Ray is not installed, or there is no cluster.
        """
        self._join(address, (open_scorer, own_versions()))

    @staticmethod
    def _sent(record: ScoreRecord) -> dict[str, Any]:
        return score_value_of(record)

    @staticmethod
    def _received(line: int, value: dict[str, Any]) -> ScoreResult:
        return score_result_of(line, value)

    @staticmethod
    def _refused(record: BadRecord) -> ScoreResult:
        return ScoreResult(record.id, record.line, error=record.error)

    @staticmethod
    def _n_tokens(result: ScoreResult) -> int:
        return result.n_tokens

    @staticmethod
    def _worker() -> type[Worker]:
        return ScoreWorker


class ScoreWorker(Worker):
    """What Ray keeps on a node: a scorer, made once."""

    def __init__(self, open_scorer: OpenScorer, versions: tuple[str, str]) -> None:
        self._open(open_scorer, versions)

    def _parser(self) -> ValueParser[ScoreRecord]:
        return ScoreParser()
