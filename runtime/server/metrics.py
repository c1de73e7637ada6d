"""``/metrics``: what Prometheus reads, in a registry of this server's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aicc.runtime.engine import Engine
from aicc.runtime.generator import Model
from aicc.runtime.server.engine_thread import EngineObserver, EngineThread
from aicc.runtime.server.recording import RequestRecord
from aicc.runtime.server.registry import Registry, Served

PATH = "/metrics"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """All of a server's figures.

    Args:
        models: What is served; their engines report here from now on.
    """

    def __init__(self, models: Registry) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "aicc_requests",
            "Requests answered, by route, model and how they went.",
            ["endpoint", "model", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "aicc_request_seconds",
            "From the headers of a request to a model to the end of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_Now(models))
        families = _Families(registry)
        for served in models:
            if isinstance(served.thread, EngineThread):
                served.thread.observer = _Observer(families, served.name)

    def ended(self, record: RequestRecord) -> None:
        """Count a request that has been answered."""
        self.requests.labels(record.endpoint, record.model or "", record.outcome).inc()
        if record.model is not None:
            self.seconds.labels(record.model).observe(record.seconds)

    def routes(self) -> list[Route]:
        """The endpoint."""

        async def metrics(request: Request) -> Response:
            """``GET /metrics``."""
            return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

        return [Route(PATH, metrics, methods=["GET"])]


class _Families:
    """What engines report, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, ["model"], buckets=buckets, registry=registry)

        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, ["model"], registry=registry)

        self.queue = histogram(
            "aicc_queue_seconds", "Until a sequence's first token, without the steps that read its prompt.", _SECONDS
        )
        self.first_token = histogram(
            "aicc_time_to_first_token_seconds", "From a request's headers to a sequence's first token.", _SECONDS
        )
        self.inter_token = histogram("aicc_inter_token_seconds", "Between two tokens of a sequence.", _TOKEN_SECONDS)
        self.batch = histogram("aicc_batch_sequences", "Sequences in a step of the engine.", _SEQUENCES)
        self.kv_used = histogram("aicc_kv_used_ratio", "Share of KV memory in use after a step.", _SHARES)
        self.completion_tokens = counter("aicc_completion_tokens", "Tokens generated.")


class _Observer(EngineObserver):
    """One engine's figures; every method runs on its thread and takes a microsecond or two."""

    def __init__(self, families: _Families, name: str) -> None:
        self._queue = families.queue.labels(name)
        self._first_token = families.first_token.labels(name)
        self._inter_token = families.inter_token.labels(name)
        self._batch = families.batch.labels(name)
        self._kv_used = families.kv_used.labels(name)
        self._completion_tokens = families.completion_tokens.labels(name)

    def step(self, engine: Engine, sequences: int) -> None:
        self._batch.observe(sequences)
        self._kv_used.observe(1 - engine.free_pages / engine.page_count)

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        self._first_token.observe(seconds)
        self._queue.observe(queue_seconds)
        self._completion_tokens.inc()

    def next_tokens(self, count: int, seconds: float) -> None:
        self._inter_token.observe(seconds / count)
        self._completion_tokens.inc(count)


class _Now(Collector):
    """What is true of the models when it is asked."""

    def __init__(self, models: Registry) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client."""
        ready = GaugeMetricFamily("aicc_model_ready", "1 if requests to the model are served.", labels=["model"])
        open_ = GaugeMetricFamily("aicc_open", "Work running, waiting or being prepared.", labels=["model"])
        pages = GaugeMetricFamily("aicc_kv_pages", "Pages of KV memory.", labels=["model"])
        free = GaugeMetricFamily("aicc_kv_pages_free", "Pages nobody owns.", labels=["model"])
        prompts = CounterMetricFamily("aicc_prompt_tokens", "Tokens of prompts that were admitted.", labels=["model"])
        hits = CounterMetricFamily("aicc_prefix_hit_tokens", "Those that were in KV memory already.", labels=["model"])
        misses = CounterMetricFamily("aicc_prefix_miss_tokens", "Those that were computed.", labels=["model"])
        preemptions = CounterMetricFamily(
            "aicc_preemptions", "Times a sequence lost its pages to an older one.", labels=["model"]
        )
        drafted = CounterMetricFamily("aicc_drafted_tokens", "Tokens that were guessed.", labels=["model"])
        accepted = CounterMetricFamily("aicc_accepted_tokens", "Guesses that were right.", labels=["model"])
        runs = InfoMetricFamily("aicc_model", "Which device runs which model, and what it was compiled for.")
        for served in self._models:
            ready.add_metric([served.name], served.thread.state == "ready")
            open_.add_metric([served.name], served.thread.open)
            model = served.thread.model
            if isinstance(model, Model):
                pages.add_metric([served.name], model.engine.page_count)
                free.add_metric([served.name], model.engine.free_pages)
                counters = model.engine.counters
                prompts.add_metric([served.name], counters.prompt_tokens)
                hits.add_metric([served.name], counters.cached_tokens)
                misses.add_metric([served.name], counters.prompt_tokens - counters.cached_tokens)
                preemptions.add_metric([served.name], counters.preemptions)
                drafted.add_metric([served.name], counters.drafted_tokens)
                accepted.add_metric([served.name], counters.accepted_tokens)
            if model is not None:
                runs.add_metric([], _info(served))
        return iter((ready, open_, pages, free, prompts, hits, misses, preemptions, drafted, accepted, runs))


def _info(served: Served[Any]) -> dict[str, str]:
    model = served.thread.model
    assert model is not None
    family, _, variant = model.target.partition(":")
    return {
        "model": served.name,
        "artifact": served.manifest.name,
        "device": model.device,
        "target": model.target,
        "family": family,
        "isa": variant,
        "quantization": served.manifest.quantization,
    }
