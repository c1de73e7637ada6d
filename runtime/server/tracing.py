"""Spans of requests for OpenTelemetry; needs the extra ``otel``.

A request's span has three below it for each sequence: queue, prefill and decode. They are made when
the answer has ended, from what its record knows: a request that runs pays nothing for them, and no
span has a prompt.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aicc.runtime.errors import MismatchError, UsageError
from aicc.runtime.server.recording import RequestRecord, SequenceTimes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing:
    """Makes spans of requests.

    Args:
        provider: Samples and exports them; :meth:`close` shuts it down.

    Raises:
        MismatchError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: TracerProvider) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("aicc")

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Spans go to a collector by OTLP over HTTP; what else there is to say, the ``OTEL_`` variables do.

        Args:
            endpoint: Its base address: ``http://localhost:4318``.

        Raises:
            UsageError: That is no address.
            MismatchError: OpenTelemetry is not installed.
        """
        if not _is_address(endpoint):
            raise UsageError(f"{endpoint!r} is no address of a collector.", "Give it in full: http://localhost:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        # What the environment says of the resource goes before what is said here.
        resource = Resource.create({SERVICE_NAME: "aicc"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def ended(self, record: RequestRecord) -> None:
        """Make the spans of a request that has been answered."""
        since_epoch = time.time() - time.monotonic()

        def nanoseconds(monotonic: float) -> int:
            return round((since_epoch + monotonic) * 1e9)

        client = self._propagator.extract(record.trace_context)
        start, end = record.started, record.started + record.seconds
        name, known = f"{record.method} {record.endpoint}".rstrip(), _attributes(record)
        span = self._tracer.start_span(name, client, self._trace.SpanKind.SERVER, known, start_time=nanoseconds(start))
        if record.status >= 500 or record.outcome == "failed":
            span.set_status(self._trace.StatusCode.ERROR)
        below = self._trace.set_span_in_context(span)
        for number, times in enumerate(record.sequences):
            for phase, since, until in _phases(times, end):
                child = self._tracer.start_span(phase, below, start_time=nanoseconds(since))
                child.set_attribute("aicc.sequence", number)
                child.end(nanoseconds(until))
        span.end(nanoseconds(end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _is_address(url: str) -> bool:
    """Whether spans could be sent there; the exporter itself takes anything, and loses them one by one."""
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and not (parts.query or parts.fragment)
    return plain and usable and parts.scheme in ("http", "https") and bool(parts.hostname)


def _phases(times: SequenceTimes, end: float) -> list[tuple[str, float, float]]:
    """Each phase a sequence came to, from when to when; ``end`` is the answer's."""
    begun = [time for time in (times.submitted, times.begun, times.first_token) if time]
    ends = [*begun[1:], times.ended or end]
    return list(zip(("queue", "prefill", "decode"), begun, ends, strict=False))


def _attributes(record: RequestRecord) -> dict[str, Any]:
    known: dict[str, Any] = {  # by OpenTelemetry's names where it has some
        "http.request.method": record.method,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": tuple(record.finish_reasons) or None,
        "aicc.request_id": record.id,
        "aicc.cached_tokens": record.cached_tokens,
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


def _missing(error: ModuleNotFoundError) -> MismatchError:
    return MismatchError(f"tracing needs {error.name}.", "Install it: pip install 'aicc[otel]'.")
