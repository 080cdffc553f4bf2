"""Traces against a real receiver of OTLP over HTTP: whose they are, what they say, and what happens without it."""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import uvloop
from front_house import Client, House, affine, http

from millstream.clock import FakeClock, SystemClock
from millstream.errors import Misconfigured
from millstream.front import Http
from millstream.front.grpc import Grpc
from millstream.front.grpc.service import Inference
from millstream.front.record import Observer, Record
from millstream.front.trace import Traces, TraceSettings, parent
from millstream.meter import Meter
from millstream.types import Listing, Slot
from otlp_collector import Collector, told

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FOLLOWED, NOT_FOLLOWED = f"00-{TRACE}-{ABOVE}-01", f"00-{TRACE}-{ABOVE}-00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


class Traced:
    """A House behind both ports that is traced, on a loop of its own."""

    def __init__(self, endpoint: str, **settings: Any) -> None:
        self.meter = Meter()
        self.door = House(self.meter)
        self.traces = Traces(TraceSettings(endpoint=endpoint, **settings), SystemClock(), self.meter)
        self.observer = Observer(SystemClock(), [self.traces])
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Traced:
        self.thread.start()
        self.observer.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.observer.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()

    async def _start(self) -> None:
        self.http = Http(self.door, self.meter, SystemClock(), observer=self.observer)
        service = Inference(self.door, SystemClock(), self.observer)
        self.grpc = Grpc(service, self.meter, SystemClock(), observer=self.observer)
        self.port, self.grpc_port = await self.http.start(port=0), await self.grpc.start(port=0)

    async def _stop(self) -> None:
        await asyncio.gather(self.http.stop(), self.grpc.stop())

    def run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(30)

    def ask(self, request: bytes, traceparent: str = "") -> int:
        async def ask() -> int:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
            line = f"\r\ntraceparent: {traceparent}\r\n".encode() if traceparent else b"\r\n"
            client.send(request.replace(b"\r\n", line, 1))
            reply = await client.read()
            client.close()
            return reply.status

        return self.run(ask())  # type: ignore[no-any-return]

    def lost(self, cause: str) -> float:
        return self.meter.counter("millstream_traces_lost_total", "", {"cause": cause}).value


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("header", "means"),
    [
        (FOLLOWED, (TRACE, int(ABOVE, 16), True)),
        (NOT_FOLLOWED, (TRACE, int(ABOVE, 16), False)),
        (f"01-{TRACE}-{ABOVE}-03-more", (TRACE, int(ABOVE, 16), True)),
        (f"00-{TRACE}-{ABOVE}-01-more", None),
        (f"ff-{TRACE}-{ABOVE}-01", None),
        (f"00-{'0' * 32}-{ABOVE}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{ABOVE}-01", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_a_traceparent_is_read_as_w3c_has_it(header: str, means: object) -> None:
    assert parent(header.encode()) == means


def test_a_request_of_http_is_a_span_with_its_queue_and_its_batch_below(collector: Collector) -> None:
    with Traced(collector.url, share=0.0) as house:
        before = time.time_ns()
        assert house.ask(affine("h1"), FOLLOWED) == 200
        until(lambda: len(collector.spans) >= 3)
        after = time.time_ns()
    (server,) = collector.named("POST /v2/models/{model}/infer")
    assert server.trace_id.hex() == TRACE and server.parent_span_id.hex() == ABOVE and server.kind == 2
    assert before - 1e9 < server.start_time_unix_nano < server.end_time_unix_nano < after + 1e9
    said = told(server)
    assert said["http.request.method"] == "POST" and said["http.response.status_code"] == 200
    assert said["url.path"] == "/v2/models/affine/infer" and said["network.peer.address"] == "127.0.0.1"
    assert (said["millstream.model"], said["millstream.version"], said["millstream.rows"]) == ("affine", "1", 1)
    assert said["millstream.request"] == "h1"
    (queue,), (batch,) = collector.named("queue"), collector.named("compute")
    for below in (queue, batch):
        assert below.trace_id == server.trace_id and below.parent_span_id == server.span_id
    assert abs(queue.end_time_unix_nano - queue.start_time_unix_nano - 120_000) < 2000
    assert queue.end_time_unix_nano == batch.start_time_unix_nano
    assert told(batch)["millstream.batch.rows"] == 2
    assert collector.service["service.name"] == "millstream"


def test_a_call_of_grpc_and_every_request_of_a_stream_is_a_span(collector: Collector) -> None:
    import tritonclient.grpc as triton

    with Traced(collector.url, share=0.0) as house:
        client = triton.InferenceServerClient(f"127.0.0.1:{house.grpc_port}")
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.ones((1, 3), np.float32))
        client.infer("affine", [x], headers={"traceparent": FOLLOWED})
        with pytest.raises(triton.InferenceServerException):
            client.infer("nobody", [x], headers={"traceparent": FOLLOWED})
        done = threading.Event()
        client.start_stream(lambda result, error: done.set(), headers={"traceparent": FOLLOWED})
        client.async_stream_infer("affine", [x])
        assert done.wait(30)
        client.stop_stream()
        client.close()
        unary = "inference.GRPCInferenceService/ModelInfer"
        stream = "inference.GRPCInferenceService/ModelStreamInfer"
        until(lambda: len(collector.named(unary)) == 2 and len(collector.named(stream)) == 2)
    good, missing = collector.named(unary)
    assert good.trace_id.hex() == TRACE and good.parent_span_id.hex() == ABOVE
    said = told(good)
    assert said["rpc.system"] == "grpc" and said["rpc.service"] == "inference.GRPCInferenceService"
    assert said["rpc.method"] == "ModelInfer" and said["rpc.grpc.status_code"] == 0
    assert told(missing)["rpc.grpc.status_code"] == 5
    assert len(collector.named("queue")) == 2


def test_a_list_and_a_ranking_say_whose_they_are_and_what_made_them(collector: Collector) -> None:
    def made(request: Any, principal: Any) -> Any:
        return Listing(request.id, "ranker", "3@7", [Slot("a", 0.5)], arm="calm")

    with Traced(collector.url, share=1.0) as house:
        assert house.ask(http("POST", "/v1/recommend", b'{"id": "r2", "user": "u", "candidates": ["a", "b"]}')) == 200
        house.door._answer = made  # type: ignore[method-assign]
        asked = b'{"id": "r1", "user": "u", "placement": "home", "n": 3, "tenant": "acme"}'
        assert house.ask(http("POST", "/v1/recommend", asked)) == 200
        assert house.ask(http("POST", "/v1/similar", b'{"id": "r3", "item": "i1", "placement": "below"}')) == 200
        until(lambda: sum(span.kind == 2 for span in collector.spans) == 3)
    by = {said["millstream.request"]: said for span in collector.spans if "millstream.request" in (said := told(span))}
    names = ("model", "version", "placement", "rules", "tenant", "rows")
    found = {ident: tuple(said.get(f"millstream.{name}", "") for name in names) for ident, said in by.items()}
    assert found == {
        "r1": ("ranker", "3@7", "home", "calm", "acme", ""),
        "r2": ("ranker", "1", "", "", "", 2),
        "r3": ("ranker", "3@7", "below", "calm", "", ""),
    }


def test_who_decided_is_followed_and_of_the_others_a_share_is_traced(collector: Collector) -> None:
    with Traced(collector.url, share=1.0) as house:
        house.ask(affine("not"), NOT_FOLLOWED)
        house.ask(affine("own"))
        house.ask(affine("broken"), "00-rubbish")
        until(lambda: len(collector.named("POST /v2/models/{model}/infer")) >= 2)
    found = collector.named("POST /v2/models/{model}/infer")
    assert [told(one)["millstream.request"] for one in found] == ["own", "broken"]
    assert all(one.parent_span_id == b"" and one.trace_id.hex() != TRACE for one in found)


def test_a_share_is_a_share_and_nobody_makes_us_trace_more_than_the_bound() -> None:
    clock = FakeClock()
    settings = TraceSettings(endpoint="http://127.0.0.1:1", share=0.25, a_second_max=50, waiting_max=10_000)
    meter = Meter()
    traces = Traces(settings, clock, meter, dice=random.Random(7))

    def traced(count: int, traceparent: bytes | None) -> int:
        records = [Record(0.0, traceparent=traceparent) for _ in range(count)]
        for one in records:
            traces.put(one)
        return sum(one.span != 0 for one in records)

    assert traced(100, FOLLOWED.encode()) == 50
    over = meter.counter("millstream_traces_lost_total", "", {"cause": "rate"})
    assert over.value == 50
    clock.advance(1.0)
    assert 10 < traced(100, None) < 40
    clock.advance(1.0)
    assert traced(100, NOT_FOLLOWED.encode()) == 0


def test_a_collector_that_is_down_stops_no_answer_and_is_said_once(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    with Traced(collector.url, share=1.0, timeout_s=2.0) as house:
        for _ in range(3):
            refused = collector.refused
            assert house.ask(affine()) == 200
            until(lambda refused=refused: collector.refused > refused)
        until(lambda: house.lost("collector") == 3)
        collector.status = 200
        assert house.ask(affine("again")) == 200
        until(lambda: collector.spans)
    said = [one.getMessage() for one in caplog.records if one.name == "millstream.front.trace"]
    assert len(said) == 2 and "takes no traces" in said[0] and "again" in said[1]
    assert not [
        one for one in caplog.records if one.name.startswith("opentelemetry") and one.levelno < logging.CRITICAL
    ]


def test_nobody_listens_and_answers_go_on() -> None:
    with Traced("http://127.0.0.1:1", share=1.0, timeout_s=0.5, waiting_max=2) as house:
        for _ in range(20):
            assert house.ask(http("GET", "/v2")) == 200
        until(lambda: house.lost("collector") > 0)
        assert house.lost("queue") > 0


def test_an_error_of_ours_marks_the_span(collector: Collector) -> None:
    with Traced(collector.url, share=1.0) as house:
        house.door.fault = RuntimeError("broken")
        assert house.ask(affine()) == 500
        until(lambda: collector.spans)
    assert collector.spans[0].status.code == 2 and told(collector.spans[0])["http.response.status_code"] == 500


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(Misconfigured, match="send a URL"):
        TraceSettings(endpoint="127.0.0.1:4318")


def test_without_traces_nothing_of_opentelemetry_is_imported() -> None:
    code = "import sys, millstream.app.plain, millstream.front.trace; print([m for m in sys.modules if 'opentel' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
