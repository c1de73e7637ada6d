"""Spans of requests: how they hang together, what is in them, and that nobody gets any unless asked."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from devices import Device
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import DEADLINE, NAME, ServerProcess, listening, wait_idle, wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aicc.runtime.artifact import Artifact
from aicc.runtime.errors import UsageError
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable
from aicc.runtime.server import Front, Limits, Tracing, create_app

SECRET = "the rain in Spain"
ASKED: dict[str, Any] = {"model": NAME, "prompt": SECRET, "max_tokens": 5, "ignore_eos": True, "n": 2}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A server over a device, and the spans it made."""

    def __init__(self, url: str, device: Device, exporter: InMemorySpanExporter) -> None:
        self.url = url
        self.device = device
        self._exporter = exporter

    def ask(self, body: dict[str, Any], **headers: str) -> tuple[httpx.Response, ReadableSpan, list[ReadableSpan]]:
        """An answer, the request's span, and those below it."""
        self._exporter.clear()
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=DEADLINE)
        return answer, *self.spans()

    def spans(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Of the one request since, once it has ended: its span is the last to end."""
        wait_until(lambda: self.exported() and self.exported()[-1].name.startswith("POST"), "tracing")
        *below, request = self.exported()
        assert all(span.parent and span.parent.span_id == request.context.span_id for span in below)
        return request, below

    def exported(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def forget(self) -> None:
        self._exporter.clear()


@pytest.fixture(scope="module")
def traced(executable: DecoderExecutable, demo_artifact: Artifact) -> Iterator[Traced]:
    exporter, provider, device = InMemorySpanExporter(), TracerProvider(), Device(executable)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app({NAME: Model(device, demo_artifact)}, Limits(), Front(tracing=Tracing(provider)))  # type: ignore[arg-type]
    with listening(app) as url:
        yield Traced(url, device, exporter)


@pytest.mark.parametrize("stream", [False, True])
def test_each_sequence_waits_reads_and_writes_below_the_callers_own_span(traced: Traced, stream: bool) -> None:
    answer, request, below = traced.ask(ASKED | {"stream": stream}, traceparent=f"00-{TRACE}-{PARENT}-01")

    assert (request.name, request.kind.name) == ("POST /v1/completions", "SERVER")
    assert format(request.context.trace_id, "032x") == TRACE
    assert request.parent is not None
    assert format(request.parent.span_id, "016x") == PARENT
    known = dict(request.attributes or {})
    assert known["aicc.request_id"] == answer.headers["x-request-id"]
    assert (known["http.response.status_code"], known["gen_ai.request.model"]) == (200, NAME)
    assert (known["gen_ai.usage.input_tokens"], known["gen_ai.usage.output_tokens"]) == (4, 10)
    assert known["gen_ai.response.finish_reasons"] == ("length", "length")
    for number in (0, 1):
        phases = [span for span in below if dict(span.attributes or {}) == {"aicc.sequence": number}]
        assert [span.name for span in phases] == ["queue", "prefill", "decode"]
        times = [request.start_time, *(t for s in phases for t in (s.start_time, s.end_time)), request.end_time]
        assert times == sorted(times, key=lambda time: time or 0)
        assert [span.end_time for span in phases[:2]] == [span.start_time for span in phases[1:]]
    assert len(below) == 6
    assert SECRET not in " ".join(span.to_json() for span in [request, *below])


def test_a_caller_without_a_trace_begins_one_and_one_who_samples_nothing_gets_none(traced: Traced) -> None:
    _, request, _ = traced.ask(ASKED)
    traced.forget()
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    httpx.post(f"{traced.url}/v1/completions", json=ASKED, headers=unsampled, timeout=DEADLINE)
    httpx.get(f"{traced.url}/health/live")
    httpx.post(f"{traced.url}/v1/completions", json={}, headers={"x-request-id": "the-next"})
    next_one, below = traced.spans()

    assert request.parent is None
    assert dict(next_one.attributes or {})["aicc.request_id"] == "the-next"  # nothing was made of the two before
    assert below == []


def test_errors_and_failures_are_told_apart(traced: Traced) -> None:
    _, wrong, below = traced.ask(ASKED | {"model": "nobody"})
    traced.device.broken = True
    _, failed, _ = traced.ask(ASKED | {"stream": True})
    traced.device.broken = False

    assert (dict(wrong.attributes or {})["error.type"], wrong.status.status_code.name) == ("model_not_found", "UNSET")
    assert below == []
    assert (dict(failed.attributes or {})["error.type"], failed.status.status_code.name) == ("internal_error", "ERROR")


def test_who_leaves_while_waiting_was_in_the_queue_only(traced: Traced) -> None:
    traced.forget()
    traced.device.halted.clear()
    traced.device.running.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{traced.url}/v1/completions", json=ASKED, timeout=0.3)
    request, below = traced.spans()
    traced.device.running.set()

    assert dict(request.attributes or {})["gen_ai.response.finish_reasons"] == ("cancelled", "cancelled")
    assert [span.name for span in below] == ["queue", "queue"]
    wait_idle(traced.url)


HEADER = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200)


@settings(max_examples=25)
@given(parent=HEADER | st.just(f"00-{TRACE}-{'0' * 16}-01") | st.just(f"00-{'0' * 32}-{PARENT}-01"), state=HEADER)
def test_a_trace_that_is_none_is_ignored(traced: Traced, parent: str, state: str) -> None:
    answer, request, _ = traced.ask({}, traceparent=parent, tracestate=state)

    assert answer.status_code == 400
    assert request.parent is None


class Collector:
    """What takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        collector, self.spans = self, list[str]()
        self.service = ""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        [collector.service] = [
                            attribute.value.string_value
                            for attribute in of_resource.resource.attributes
                            if attribute.key == "service.name"
                        ]
                        collector.spans += [s.name for scope in of_resource.scope_spans for s in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_collector_has_all_spans_when_the_server_has_ended(demo_artifact: Artifact) -> None:
    collector = Collector()
    with ServerProcess(demo_artifact.path, otlp_endpoint=collector.url) as server:
        server.wait_ready()
        httpx.post(f"{server.url}/v1/completions", json=ASKED | {"n": 1}, timeout=DEADLINE)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.end() == 0
    collector.close()

    assert sorted(collector.spans) == ["POST /v1/completions", "decode", "prefill", "queue"]
    assert collector.service == "aicc"


def test_a_collector_that_is_not_there_changes_no_answer_and_does_not_hold_up_the_end(demo_artifact: Artifact) -> None:
    with ServerProcess(demo_artifact.path, otlp_endpoint="http://127.0.0.1:9") as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/v1/completions", json=ASKED | {"n": 1}, timeout=DEADLINE)
        os.kill(server.process.pid, signal.SIGTERM)

        assert answer.status_code == 200
        assert server.end() == 0


@pytest.mark.parametrize(
    "address",
    ["localhost:4318", "http://", "http://[::1", "http://a b", "http://localhost:99999", "ftp://x", "http://x?y"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="no address of a collector"):
        Tracing.to(address)


def test_nothing_of_it_is_loaded_unless_asked_and_what_lacks_is_named() -> None:
    code = """
import json, sys
import aicc.runtime.server
loaded = [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None  # as if it were not installed
try:
    aicc.runtime.server.Tracing.to("http://localhost:4318")
except aicc.runtime.errors.MismatchError as error:
    print(json.dumps([loaded, str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded, message = json.loads(done.stdout)
    assert loaded == []
    assert "pip install 'aicc[otel]'" in message
