"""What is remembered of a request for the access log and for traces, and who gets it when the request ends.

Rules of the room:
- A record holds no key, no tensor, no text of a body: nothing that the redaction gate would have to see.
- Where nobody wants records none is made: a border without an observer costs a comparison with None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from millstream.clock import Clock
from millstream.types import Ask, Listing, Output, Ran, Rank, Ranked

if TYPE_CHECKING:
    from millstream.front.exchange import Exchange
    from millstream.front.grpc.stream import Stream

PATH_CHARS_MAX = 200
GONE = 499  # as status of a request whose client did not wait for the answer


class Record(msgspec.Struct):
    """One request. `begun`: monotonic; `time`: unix seconds at its end; `asked_s`: from its begin to the Door;
    `status`: HTTP's number or gRPC's code; `arm`: of traffic; of a list `placement`, and `rules`, the arm of its rules.
    `trace`: the trace id in hex; `span`, `parent`: of its span, 0 for none."""

    begun: float
    border: str = "http"
    method: str = ""
    route: str = ""
    peer: str = ""
    status: int | str = 0
    time: float = 0.0
    seconds: float = 0.0
    key: str = ""
    model: str = ""
    version: str = ""
    arm: str = ""
    rows: int = 0
    request: str = ""
    placement: str = ""
    rules: str = ""
    tenant: str = ""
    asked_s: float = 0.0
    queue_s: float = 0.0
    ran: Ran | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    traceparent: bytes | None = None
    trace: str = ""
    span: int = 0
    parent: int = 0

    def asks(self, model: str, rows: int, request: str, now: float) -> None:
        """The Door is asked, at a monotonic time."""
        self.model, self.rows, self.request, self.asked_s = model, rows, request, now - self.begun

    def wants(self, ask: Rank | Ask, now: float) -> None:
        """The Door is asked for a ranking or a list."""
        self.asks(ask.model if isinstance(ask, Rank) else "", len(ask.candidates), ask.id, now)
        self.tenant = ask.tenant
        if isinstance(ask, Ask):
            self.placement = ask.placement

    def ranked(self, made: Ranked | Listing) -> None:
        """A ranking or a list is made."""
        self.model, self.version = made.model, made.version
        if isinstance(made, Listing):
            self.rules = made.arm

    def answered(self, output: Output) -> None:
        """A version has answered."""
        self.version, self.arm, self.queue_s, self.ran = output.version, output.arm, output.queue_s, output.ran


class Sink(Protocol):
    """Where records go."""

    def start(self) -> None:
        """Begin to take records."""

    def put(self, record: Record) -> None:
        """Take one; never blocks, never raises."""

    def stop(self, within_s: float) -> None:
        """End, with what waits taken where that goes within a time. Blocks so long."""


class Observer:
    """Completes the records of both borders and hands them to the sinks, in their order."""

    def __init__(self, clock: Clock, sinks: list[Sink]) -> None:
        self.monotonic, self._now, self._sinks = clock.monotonic, clock.now, sinks

    def start(self) -> None:
        """Begin."""
        for sink in self._sinks:
            sink.start()

    def stop(self, within_s: float = 2.0) -> None:
        """End. Blocks at most so long for each sink."""
        for sink in self._sinks:
            sink.stop(within_s)

    def http(self, exchange: Exchange, size: int, status: int = 0) -> None:
        """An exchange of HTTP has ended, with an answer of `size` bytes."""
        record = exchange.record or Record(exchange.started)
        record.method = exchange.method.decode("ascii", "replace")
        record.route, record.peer = _route(exchange.url), exchange.peer
        record.status = status or exchange.status
        record.bytes_in, record.bytes_out = len(exchange.body), size
        record.traceparent = exchange.traceparent
        if not record.request and exchange.request_id:
            record.request = exchange.request_id[:PATH_CHARS_MAX].decode("ascii", "replace")
        self.done(record)

    def call(self, stream: Stream, code: str) -> None:
        """A call of gRPC has ended."""
        record = stream.record or Record(stream.started)
        self.grpc(record, stream.path, stream.metadata, stream.peer, code)

    def grpc(self, record: Record, path: bytes, metadata: dict[bytes, bytes], peer: str, code: str) -> None:
        """One request of gRPC has ended: a call, or one message of a stream."""
        record.border, record.route, record.peer, record.status = "grpc", _route(path), peer, code
        record.method = record.route.rpartition("/")[2]
        record.traceparent = metadata.get(b"traceparent")
        if not record.request and b"x-request-id" in metadata:
            record.request = metadata[b"x-request-id"][:PATH_CHARS_MAX].decode("ascii", "replace")
        self.done(record)

    def done(self, record: Record) -> None:
        """Hand on what is complete but for its end."""
        record.time, record.seconds = self._now(), self.monotonic() - record.begun
        for sink in self._sinks:
            sink.put(record)


def _route(url: bytes) -> str:
    """The path alone: a query or a session's token may be a secret."""
    path = url.partition(b"?")[0]
    if b"/sequences/" in path:
        path = path.partition(b"/sequences/")[0] + b"/sequences/TOKEN"
    return path[:PATH_CHARS_MAX].decode("ascii", "backslashreplace")
