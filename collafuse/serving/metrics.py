"""Numbers for Prometheus. No names of clients, tokens or labels: whoever may read them learns traffic only."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .admission import Shares
from .engine import Engine

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The counters of one service."""

    def __init__(self, engine: Engine | None, shares: Shares) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_SharesCounter(shares))
        if engine is not None:
            self.registry.register(_EngineGauges(engine))
        self.requests = Counter(
            "collafuse_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "collafuse_intermediates_seconds",
            "Time from a request for intermediates to its reply, those that were delivered.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.left = Counter("collafuse_clients_left", "Clients that left before their reply.", registry=self.registry)
        self.release_bytes = Counter("collafuse_release_bytes", "Bytes of new releases kept.", registry=self.registry)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _SharesCounter(Collector):
    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "collafuse_limits_alone",
            "Times a token's images were counted in this process alone: limits.sqlite could not be used.",
            self._shares.times_alone,
        )


class _EngineGauges(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        state = self._engine.state()
        rate = state.images_per_second or 0.0
        yield GaugeMetricFamily("collafuse_rows", "Rows of the shared batch.", state.slots)
        yield GaugeMetricFamily("collafuse_rows_used", "Rows that hold an image.", state.running)
        yield GaugeMetricFamily("collafuse_jobs", "Requests that are being sampled.", state.jobs)
        yield GaugeMetricFamily("collafuse_images_waiting", "Accepted images without a row.", state.waiting)
        yield GaugeMetricFamily("collafuse_images_finished", "Images finished since the start.", state.finished)
        yield GaugeMetricFamily("collafuse_steps", "Steps of the batch since the start.", state.steps)
        yield GaugeMetricFamily("collafuse_images_per_second", "Measured drain rate.", rate)
