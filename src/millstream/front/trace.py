"""Traces of requests, to a collector that speaks OTLP over HTTP. They need the extra `otel`; who has none imports none.

Rules of the room:
- Whether a request is traced: as its caller decided (`traceparent`, W3C Trace Context), else by `share`. No more than
  `a_second_max` a second, whoever asks: a caller cannot make us work for it.
- Spans are made when the request is over, from what was measured anyway, in a thread of their own.
- A collector that is down loses traces, and nothing else: that is counted, said once, and said again when it is back.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

import millstream
from millstream.clock import Clock
from millstream.errors import Misconfigured, Missing
from millstream.front.aside import Aside
from millstream.front.grpc.headers import CODES
from millstream.front.record import Record
from millstream.meter import Meter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where traces go, and of which requests."""

    endpoint: Annotated[
        str, Meta(description="of a collector for OTLP over HTTP, such as http://127.0.0.1:4318; empty: no traces")
    ] = ""
    share: Annotated[
        float, Meta(ge=0, le=1, description="of the requests whose caller has not decided; who decided is followed")
    ] = 0.01
    a_second_max: Annotated[int, Meta(ge=1, description="traced requests a second, whoever decided")] = 100
    waiting_max: Annotated[
        int, Meta(ge=1, description="traced requests that wait for the collector; more are dropped and counted")
    ] = 2048
    timeout_s: Annotated[float, Meta(gt=0, description="the collector may take for one message")] = 5.0

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise Misconfigured(f"trace.endpoint: got {self.endpoint!r}; send a URL such as http://127.0.0.1:4318")


def parent(traceparent: bytes) -> tuple[str, int, bool] | None:
    """(trace id, span id, whether it is sampled) of a traceparent; None: it is none, and counts as not sent."""
    found = _PARENT.fullmatch(traceparent)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    trace, span = found[2].decode(), int(found[3], 16)
    return (trace, span, bool(int(found[4], 16) & 1)) if int(trace, 16) and span else None


Told = dict[str, str | int | float]
"""Attributes of a span."""


class Ids:
    """A sink that only writes down whose trace a record belongs to, for the access log."""

    def put(self, record: Record) -> None:
        """Fill in the trace id."""
        if record.traceparent is not None and (found := parent(record.traceparent)) is not None:
            record.trace = found[0]

    def start(self) -> None:
        """Nothing has to begin."""

    def stop(self, within_s: float) -> None:
        """Nothing waits."""


class Traces:
    """A sink of records that become spans. Missing: the extra `otel` is not installed."""

    def __init__(
        self,
        settings: TraceSettings,
        clock: Clock,
        meter: Meter,
        scheme: str = "http",
        dice: random.Random | None = None,
    ) -> None:
        self._settings, self._monotonic, self._dice = settings, clock.monotonic, dice or random.Random()
        self._second, self._begun = 0, 0
        lost = ("millstream_traces_lost_total", "Traced requests that no collector has got, by cause")
        self._over, self._unsent = (meter.counter(*lost, {"cause": cause}) for cause in ("rate", "collector"))
        self._sent = meter.counter("millstream_traces_total", "Traced requests that the collector has got")
        self._failing = False
        self._make = _Spans(scheme)
        self._exporter = exporter(settings.endpoint, settings.timeout_s)
        queue = meter.counter(*lost, {"cause": "queue"})
        self._aside = Aside("millstream-traces", self._take, settings.waiting_max, queue)
        self.start = self._aside.start

    def put(self, record: Record) -> None:
        """Give the record its trace, if it is to have one."""
        came = None if record.traceparent is None else parent(record.traceparent)
        if came is not None:
            record.trace, record.parent, sampled = came
        else:
            sampled = self._dice.random() < self._settings.share
        if not sampled:
            return
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        if self._begun > self._settings.a_second_max:
            self._over.add()
            return
        if came is None:
            record.trace = f"{self._dice.getrandbits(128) or 1:032x}"
        record.span = self._dice.getrandbits(64) or 1
        self._aside.put(record)

    def stop(self, within_s: float) -> None:
        """Send what waits, and end."""
        self._aside.stop(within_s)
        self._exporter.shutdown()

    def _take(self, records: list[Record]) -> None:
        spans = [span for record in records for span in self._make(record, self._dice)]
        sent = self._exporter.export(spans).name == "SUCCESS"
        (self._sent if sent else self._unsent).add(len(records))
        if sent == self._failing:
            self._failing = not sent
            if sent:
                logger.warning("traces go to %s again", self._settings.endpoint)
            else:
                logger.error("%s takes no traces: answers go on, traces are lost", self._settings.endpoint)


def exporter(endpoint: str, timeout_s: float) -> Any:
    """What takes spans to a collector at a URL; `/v1/traces` where it says no path. Missing: the extra `otel`."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise Missing.extra("otel", f"traces ({error})") from None
    # It would say every failed message; what there is to say is said here, once.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    endpoint = endpoint.rstrip("/")
    if endpoint.count("/") == 2:
        endpoint += "/v1/traces"
    return OTLPSpanExporter(endpoint=endpoint, timeout=timeout_s)


class Origin:
    """Makes spans that say they are Millstream's. Missing: the extra `otel`."""

    def __init__(self) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise Missing.extra("otel", f"traces ({error})") from None
        version = millstream.__version__
        self._resource = Resource.create({"service.name": "millstream", "service.version": version})
        self._scope = InstrumentationScope("millstream", version)

    def span(
        self, trace: int, name: str, span: int, above: int, begin: float, end: float, attributes: Told,
        serves: bool = False, far: bool = False, broken: bool = False,
    ) -> ReadableSpan:  # fmt: skip
        """A span within [begin, end], unix seconds; `above`: the span that it is part of, 0 for none, `far` where
        another program made that one; `serves`: it answers somebody; `broken`: it failed."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        sampled = TraceFlags(TraceFlags.SAMPLED)
        return ReadableSpan(
            name=name,
            context=SpanContext(trace, span, False, sampled),
            parent=SpanContext(trace, above, far, sampled) if above else None,
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.SERVER if serves else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR) if broken else Status(),
            start_time=int(begin * 1e9),
            end_time=int(max(begin, end) * 1e9),
            instrumentation_scope=self._scope,
        )


class _Spans:
    """Makes the spans of a record: the request, and below it what its time went to."""

    def __init__(self, scheme: str) -> None:
        self._scheme, self._origin = scheme, Origin()

    def __call__(self, record: Record, dice: random.Random) -> Iterator[ReadableSpan]:
        end = record.time
        begin = end - record.seconds
        told = _attributes(record, self._scheme)
        yield self._span(record, _name(record), record.span, record.parent, begin, end, told, True)
        if not record.version:
            return
        asked = begin + record.asked_s
        started = asked + record.queue_s
        yield self._span(record, "queue", dice.getrandbits(64) or 1, record.span, asked, started, {})
        if (ran := record.ran) is not None:
            done = started + ran.copy_s + ran.compute_s + ran.split_s
            batch: Told = {
                "millstream.batch.requests": ran.requests,
                "millstream.batch.rows": ran.rows,
                "millstream.batch.padding": ran.padding,
                "millstream.batch.copy_s": ran.copy_s,
                "millstream.batch.compute_s": ran.compute_s,
                "millstream.batch.split_s": ran.split_s,
            }
            yield self._span(record, "compute", dice.getrandbits(64) or 1, record.span, started, min(done, end), batch)

    def _span(
        self,
        record: Record,
        name: str,
        span: int,
        above: int,
        begin: float,
        end: float,
        attributes: Told,
        serves: bool = False,
    ) -> ReadableSpan:
        broken = serves and (record.status >= 500 if isinstance(record.status, int) else record.status in _OURS)
        trace = int(record.trace, 16)
        return self._origin.span(trace, name, span, above, begin, end, attributes, serves, serves, broken)


# The codes of gRPC that are the server's fault, as OpenTelemetry's conventions have it.
_OURS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))


def _name(record: Record) -> str:
    return record.route.lstrip("/") if record.border == "grpc" else f"{record.method} {_template(record)}"


def _template(record: Record) -> str:
    """The route with the model's name as a placeholder: spans of one name belong together."""
    parts = record.route.split("/")
    if parts[1:3] == ["v2", "models"] and len(parts) > 3 and parts[3] != "stats":
        parts[3] = "{model}"
        if len(parts) > 5 and parts[4] == "versions":
            parts[5] = "{version}"
    return "/".join(parts)


def _attributes(record: Record, scheme: str) -> Told:
    """Those of OpenTelemetry's conventions for HTTP and RPC servers, and ours."""
    told: Told = {"network.peer.address": record.peer}
    if record.border == "grpc":
        service, _, method = record.route.lstrip("/").rpartition("/")
        told |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        told["rpc.grpc.status_code"] = CODES.get(str(record.status), 2)
    else:
        told |= {"http.request.method": record.method, "http.route": _template(record), "url.path": record.route}
        told |= {"url.scheme": scheme, "http.response.status_code": int(record.status)}
    ours: Told = {
        "model": record.model,
        "version": record.version,
        "arm": record.arm,
        "rows": record.rows,
        "request": record.request,
        "placement": record.placement,
        "rules": record.rules,
        "tenant": record.tenant,
        "key": record.key,
    }
    return told | {f"millstream.{name}": value for name, value in ours.items() if value}
