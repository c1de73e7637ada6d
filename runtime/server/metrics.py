"""``/metrics``: what Prometheus reads, in a registry of this server's own."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
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
        observers: dict[str, _Observer] = {}
        for served in models:
            if isinstance(served.thread, EngineThread):
                served.thread.observer = observers[served.name] = _Observer()
        registry.register(_Observed(observers))

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


class _Histogram:
    """Values one thread observes, between two tokens: prometheus-client's own takes several locks for each of them.

    Args:
        bounds: Largest values of the buckets, ascending.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def tell(self, family: HistogramMetricFamily, name: str) -> None:
        """Add what was observed of a model to its family."""
        bounds = map(floatToGoString, (*self._bounds, math.inf))
        family.add_metric([name], list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)


class _Observer(EngineObserver):
    """One engine's figures; every method runs on its thread and takes a microsecond."""

    def __init__(self) -> None:
        self.queue, self.first_token_seconds = _Histogram(_SECONDS), _Histogram(_SECONDS)
        self.inter_token = _Histogram(_TOKEN_SECONDS)
        self.batch, self.kv_used = _Histogram(_SEQUENCES), _Histogram(_SHARES)
        self.completion_tokens = 0

    def step(self, engine: Engine, sequences: int) -> None:
        self.batch.observe(sequences)
        self.kv_used.observe(1 - engine.free_pages / engine.page_count)

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        self.first_token_seconds.observe(seconds)
        self.queue.observe(queue_seconds)
        self.completion_tokens += 1

    def next_tokens(self, count: int, seconds: float) -> None:
        self.inter_token.observe(seconds / count)
        self.completion_tokens += count


class _Observed(Collector):
    """What engines' observers have seen, by model."""

    def __init__(self, observers: Mapping[str, _Observer]) -> None:
        self._observers = observers

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client."""

        def histogram(name: str, what: str) -> HistogramMetricFamily:
            return HistogramMetricFamily(name, what, labels=["model"])

        queue = histogram(
            "aicc_queue_seconds", "Until a sequence's first token, without the steps that read its prompt."
        )
        first = histogram("aicc_time_to_first_token_seconds", "From a request's headers to a sequence's first token.")
        inter = histogram("aicc_inter_token_seconds", "Between two tokens of a sequence.")
        batch = histogram("aicc_batch_sequences", "Sequences in a step of the engine.")
        kv_used = histogram("aicc_kv_used_ratio", "Share of KV memory in use after a step.")
        tokens = CounterMetricFamily("aicc_completion_tokens", "Tokens generated.", labels=["model"])
        for name, seen in self._observers.items():
            seen.queue.tell(queue, name)
            seen.first_token_seconds.tell(first, name)
            seen.inter_token.tell(inter, name)
            seen.batch.tell(batch, name)
            seen.kv_used.tell(kv_used, name)
            tokens.add_metric([name], seen.completion_tokens)
        return iter((queue, first, inter, batch, kv_used, tokens))


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
