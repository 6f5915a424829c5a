"""What the server counts, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/. Counters of the engine are read when
they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine_thread import EngineThread
from .pushed_engine import EngineFigures

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def rss_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


class Counted(Protocol):
    """The models of a server, as far as they are counted."""

    @property
    def threads(self) -> list[EngineThread]:
        """Of those that are loaded."""
        ...

    @property
    def figures(self) -> EngineFigures:
        """Of all models since the server began."""
        ...


class Metrics:
    """Counts of one server."""

    def __init__(self, models: Counted) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "infer_os_requests", "Requests by address and status.", ("path", "status"),
            registry=self._registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "infer_os_first_token_seconds", "From a request to its first token.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.duration = Histogram(
            "infer_os_request_seconds", "From a request for text to the end of its answer.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_EngineCollector(models))

    def text(self) -> bytes:
        """All of them now."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """What engines and their threads say of themselves, all models together."""

    def __init__(self, models: Counted) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        threads, figures = self._models.threads, self._models.figures
        running = sum(thread.n_running for thread in threads)
        waiting = sum(thread.n_waiting for thread in threads)
        parallel = sum(thread.engine.n_seq for thread in threads)
        n_ctx = max((thread.engine.n_ctx for thread in threads), default=0)
        counters = (
            ("prompt_tokens", "Tokens of prompts.", figures.prompt_tokens),
            ("shared_tokens", "Of those, taken from the cache.", figures.shared_tokens),
            ("completion_tokens", "Tokens drawn.", figures.completion_tokens),
            ("steps", "Steps of the engine.", figures.steps),
            ("rows", "Rows computed.", figures.rows),
            ("filler_rows", "Of those, fillers.", figures.filler_rows),
            ("drafted_tokens", "Guesses verified.", figures.drafted),
            ("accepted_tokens", "Guesses that were right.", figures.accepted),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"infer_os_{name}", text, value=value)
        gauges = (
            ("running_texts", "Texts that are computed now.", running),
            ("waiting_texts", "Texts that wait for room.", waiting),
            ("parallel", "Texts that are computed at once, at most.", parallel),
            ("context_tokens", "Tokens of a text's context, at most.", n_ctx),
            ("loaded_models", "Models that are loaded.", len(threads)),
            ("resident_bytes", "Memory of the process.", rss_bytes()),
            ("planned_bytes", "Memory that the plan foresees.", figures.planned_bytes),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"infer_os_{name}", text, value=value)
