"""Counters of a server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self.requests = Counter(
            "fbnetv3_requests",
            "Requests for predictions, by HTTP status",
            ["model", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "fbnetv3_request_seconds",
            "Seconds from the headers of a request to its answer",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "fbnetv3_images",
            "Images, by whether they could be read",
            ["model", "result"],
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "fbnetv3_batch_size",
            "Images per call of the network",
            ["model"],
            buckets=_BATCH_SIZES,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "fbnetv3_waiting_images",
            "Images between their request and its answer",
            ["model"],
            registry=self._registry,
        )

    def watch_waiting(self, model: str, count: Callable[[], float]) -> None:
        """Have the gauge of waiting images call `count`."""
        self._waiting.labels(model).set_function(count)

    def count_requests(self) -> int:
        """Return the number of answered requests for predictions."""
        (family,) = self.requests.collect()
        return round(sum(sample.value for sample in family.samples if sample.name.endswith("_total")))

    def render(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._registry)
