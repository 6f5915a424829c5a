"""What the server counts, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/. Counters of the engine are read when
they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine_thread import EngineThread

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def rss_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


class Metrics:
    """Counts of one server."""

    def __init__(self, thread: EngineThread) -> None:
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
        self._registry.register(_EngineCollector(thread))

    def text(self) -> bytes:
        """All of them now."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """What the engine and its thread say of themselves."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        thread, figures = self._thread, self._thread.engine.figures()
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
            ("running_texts", "Texts that are computed now.", thread.n_running),
            ("waiting_texts", "Texts that wait for room.", thread.n_waiting),
            ("parallel", "Texts that are computed at once, at most.", thread.engine.n_seq),
            ("context_tokens", "Tokens of a text's context.", thread.engine.n_ctx),
            ("resident_bytes", "Memory of the process.", rss_bytes()),
            ("planned_bytes", "Memory that the plan foresees.", figures.planned_bytes),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"infer_os_{name}", text, value=value)
