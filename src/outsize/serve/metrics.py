"""``/metrics``: what the server has done, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outsize.engine.service import Service
from outsize.serve.backend import Listening

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
COUNTERS = {
    "prompt_tokens": "tokens of prompts that were computed",
    "cached_tokens": "tokens of prompts that earlier requests had computed",
    "new_tokens": "tokens that were generated",
    "finished": "sequences that came to their end",
    "failed": "sequences that failed",
    "cancelled": "sequences whose clients left",
}
GAUGES = {
    "underway": "sequences that share the sweep",
    "pending": "sequences that wait for their turn",
    "kept_bytes": "bytes of keys and values that are kept for later requests",
    "sweep_s": "seconds of the last sweep",
    "predicted_sweep_s": "seconds of a sweep with the sequences that are underway, as predicted",
}


class Metrics(Collector):
    """Reads a service's figures when it is asked, and counts the seconds of requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry(auto_describe=False)
        self._first = Histogram(
            "outsize_first_token_seconds", "to a request's first token", buckets=SECONDS, registry=self._registry
        )
        self._between = Histogram(
            "outsize_token_seconds", "between tokens of a request", buckets=SECONDS, registry=self._registry
        )
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The service's figures now."""
        load = self._service.load()
        for name, help_ in COUNTERS.items():
            yield CounterMetricFamily(f"outsize_{name}", help_, value=getattr(load, name))
        for name, help_ in GAUGES.items():
            yield GaugeMetricFamily(f"outsize_{name.replace('_s', '_seconds')}", help_, value=getattr(load, name))
        sweep = self._service.sweep
        yield CounterMetricFamily("outsize_sweeps", "passes over the weights", value=sweep.sweeps)
        yield CounterMetricFamily("outsize_disk_bytes", "bytes read from the drive", value=sweep.bytes_read)

    def note(self, listening: Listening) -> None:
        """A request is at its end."""
        moments = listening.moments
        if moments:
            self._first.observe(moments[0] - listening.began)
        if len(moments) > 1:
            self._between.observe((moments[-1] - moments[0]) / (len(moments) - 1))

    def text(self) -> bytes:
        """All of it, in Prometheus' form."""
        return generate_latest(self._registry)
