"""What Prometheus reads at ``/metrics``; vLLM's names where they mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from mlflow_phi3_onnx.server.models import Registry
    from mlflow_phi3_onnx.server.record import Record

__all__ = ["PREFIX", "Metrics"]

PREFIX = "onnx_genai:"
"""Stands where vLLM's metrics have ``vllm:``, so that a dashboard is changed in one step."""

_OPEN_METRICS = "application/openmetrics-text"

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_BY_MODEL = ("model_name",)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        models: The models that are served, whose state is read when the metrics are.
    """

    def __init__(self, models: Registry) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(models))
        self._requests = self._counter(
            "http_requests", "HTTP requests by route and status.", ("method", "route", "status")
        )
        self._finished = self._counter(
            "request_success", "Completions by finish reason.", (*_BY_MODEL, "finished_reason")
        )
        self._cancelled = self._counter("requests_cancelled", "Requests whose client went away.")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Tokens of completions.")
        self._queries = self._counter("prefix_cache_queries", "Tokens looked for in the cache.")
        self._hits = self._counter("prefix_cache_hits", "Tokens found in the prefix cache.")
        self._first = self._histogram("time_to_first_token_seconds", "Of requests.")
        self._gaps = self._histogram("inter_token_latency_seconds", "Of streams.")
        self._whole = self._histogram("e2e_request_latency_seconds", "Of whole requests.")
        self._queue = self._histogram("request_queue_time_seconds", "In the server's queue.")
        self._prompts = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._completions = self._histogram(
            "request_generation_tokens", "Tokens of a request's completions.", _TOKENS
        )

    def written(self, accept: str) -> tuple[bytes, str]:
        """Write the metrics, and name the format.

        OpenMetrics also has the id of the last request in each bucket (exemplars).

        Args:
            accept: The formats that are taken, as the request's header says; else it is
                Prometheus' text format.
        """
        if _OPEN_METRICS not in accept:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        # Names with colons need no escaping in this version; the library would escape them.
        text = openmetrics.generate_latest(self._registry, escaping=openmetrics.ALLOWUTF8)
        return text, f"{_OPEN_METRICS}; version=1.0.0; charset=utf-8"

    def add(self, record: Record) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.method, record.route, str(record.status)).inc()
        if not record.model:
            return
        name, request = record.model, {"request_id": record.id}
        if record.status == 499:
            self._cancelled.labels(name).inc()
        if record.queued is not None:
            self._queue.labels(name).observe(record.queued, request)
        if record.first_token is not None:
            self._first.labels(name).observe(record.first_token, request)
        gaps = self._gaps.labels(name)
        for gap in record.gaps:
            gaps.observe(gap, request)
        if record.completion_tokens is not None:
            self._generated.labels(name).inc(record.completion_tokens)
        if record.prompt_tokens is None:
            return
        self._whole.labels(name).observe(record.seconds, request)
        self._prompt.labels(name).inc(record.prompt_tokens)
        self._queries.labels(name).inc(record.prompt_tokens)
        self._hits.labels(name).inc(record.cached_tokens)
        self._prompts.labels(name).observe(record.prompt_tokens, request)
        self._completions.labels(name).observe(record.completion_tokens or 0, request)
        for reason in record.finish_reasons:
            self._finished.labels(name, reason).inc()

    def _counter(self, name: str, about: str, labels: tuple[str, ...] = _BY_MODEL) -> Counter:
        return Counter(PREFIX + name, about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(PREFIX + name, about, _BY_MODEL, buckets=buckets, registry=self._registry)


class _State:
    """What is so at the moment of reading."""

    def __init__(self, models: Registry) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, and what the engines count themselves."""
        gauges = {
            "num_requests_running": ("Requests that are worked on.", lambda m: m.admission.running),
            "num_requests_waiting": ("Requests in the queue.", lambda m: m.admission.waiting),
            "batch_size": ("Sequences that are computed together.", lambda m: m.load.running),
            "num_sequences_waiting": ("Sequences that wait for that.", lambda m: m.load.waiting),
            "model_loaded": ("Whether the model is in memory.", lambda m: m.loaded),
        }
        for name, (about, read) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, about, labels=_BY_MODEL)
            for served in self._models.served:
                gauge.add_metric([served.name], float(read(served)))
            yield gauge
        restarts = CounterMetricFamily(
            PREFIX + "worker_restarts", "Worker processes that died.", labels=_BY_MODEL
        )
        for served in self._models.served:
            restarts.add_metric([served.name], served.health.deaths)
        yield restarts
