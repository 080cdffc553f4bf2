"""HTTP itself: order, framing, slowness, bounds, disconnects, draining. Real sockets on loopback, raw bytes."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable

import orjson
import pytest
import uvloop
from front_house import Client, Reply, Served, affine, affine_binary, chunked, http, infer, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.clock import FakeClock
from millstream.front import HttpLimits
from millstream.front.connection import SLICE_BYTES, Connection
from millstream.front.exchange import Exchange


def with_server(
    test: Callable[[Served], Awaitable[None]], limits: HttpLimits | None = None, clock: FakeClock | None = None
) -> None:
    async def run() -> None:
        async with asyncio.timeout(100), Served(limits, clock) as served:
            await test(served)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the surrounding timeout is the bound."""
    while not true():
        await asyncio.sleep(0.001)


async def pass_time(clock: FakeClock, seconds: float) -> None:
    for _ in range(3):
        await asyncio.sleep(0.01)  # what is on the sockets first
    clock.advance(seconds)
    for _ in range(3):
        await asyncio.sleep(0.01)


# Order and framing.


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)))
def test_pipelined_answers_keep_the_order_of_requests(order: list[int]) -> None:
    async def test(served: Served) -> None:
        served.door.held = []
        client = await served.connect()
        for at in range(8):
            client.send(affine(str(at)) if at % 2 else affine_binary(str(at)))
        client.send(http("GET", "/v2/health/live"))  # answered at once, but last
        await until(lambda: len(served.door.held or []) == 8)
        served.door.release(order)
        for at in range(8):
            reply = await client.read()
            size = int(reply.headers.get("inference-header-content-length", len(reply.body)))
            assert orjson.loads(reply.body[:size])["id"] == str(at)
        assert (await client.read()).json == {"live": True}
        client.close()

    with_server(test)


STREAM = (
    affine("one"),
    chunked(affine_binary("two"), 11),
    http("GET", "/v2/models/affine"),
    http("HEAD", "/v2"),
    infer("affine", [tensor("x", "FP32", [1, 3], data=[1, 2])], id="bad"),
    http("GET", "/nowhere"),
    affine_binary("three"),
    http("GET", "/v2/health/live", Connection="close"),
)


async def answers(client: Client) -> list[tuple[int, bytes]]:
    replies = [await client.read(head=at == 3) for at in range(len(STREAM))]
    assert await client.ended()
    return [(reply.status, reply.body) for reply in replies]


def test_the_stream_may_be_cut_anywhere() -> None:
    whole = b"".join(STREAM)

    async def test(served: Served) -> None:
        async def sent(*cuts: int) -> list[tuple[int, bytes]]:
            client = await served.connect()
            for start, end in zip((0, *cuts), (*cuts, len(whole)), strict=True):
                client.send(whole[start:end])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            found = await answers(client)
            client.close()
            return found

        expected = await sent()
        assert [status for status, _ in expected] == [200, 200, 200, 200, 400, 404, 200, 200]
        for cut in range(1, len(whole), 2):
            assert await sent(cut) == expected, cut
        assert await sent(*range(1, len(whole))) == expected

    with_server(test)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, len(b"".join(STREAM)) - 1), unique=True, max_size=12).map(sorted))
def test_the_stream_may_be_cut_in_many_places(cuts: list[int]) -> None:
    whole = b"".join(STREAM)

    async def test(served: Served) -> None:
        client = await served.connect()
        for start, end in zip((0, *cuts), (*cuts, len(whole)), strict=True):
            client.send(whole[start:end])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert [status for status, _ in await answers(client)] == [200, 200, 200, 200, 400, 404, 200, 200]
        client.close()

    with_server(test)


VALID = (*STREAM, http("POST", "/v1/outcomes", b'{"kind": "like", "event_time": 1}'))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("xdi"), st.binary(max_size=4)), max_size=6),
)
def test_a_mutated_request_never_hangs_or_breaks_the_server(
    raw: bytes, mutations: list[tuple[float, str, bytes]]
) -> None:
    mutated = bytearray(raw)
    for place, kind, new in mutations:
        at = int(place * len(mutated))
        if kind == "d":
            del mutated[at : at + 3]
        else:
            mutated[at : at + (len(new) if kind == "x" else 0)] = new

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(bytes(mutated))
        client.writer.write_eof()
        everything = await client.reader.read(-1)
        for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", everything):
            assert int(status) < 500, (bytes(mutated), everything)
        assert (await served.ask(affine())).status == 200, "the next client is served"
        client.close()

    with_server(test)


def test_chunked_bodies_and_trailers() -> None:
    async def test(served: Served) -> None:
        for size in (1, 3, 1000):
            assert (await served.ask(chunked(affine("c"), size))).json["id"] == "c"
        with_trailer = chunked(affine("c"))[:-2] + b"Checksum: 1\r\n\r\n"
        assert (await served.ask(with_trailer)).status == 200

    with_server(test)


def test_a_large_body_comes_whole() -> None:
    values = [[float(i), 0.0, 0.0] for i in range(20_000)]

    async def test(served: Served) -> None:
        raw = infer("affine", [tensor("x", "FP32", [20_000, 3], data=values)], outputs=[{"name": "y"}])
        assert len(raw) > 10 * SLICE_BYTES
        for request in (raw, chunked(raw, 10_000)):
            reply = await served.ask(request)
            assert reply.json["outputs"][0]["data"][-2:] == [19_999.0, 39_998.0]
        assert served.http.held_bytes == 0

    with_server(test)


def test_expect_100_continue() -> None:
    async def test(served: Served) -> None:
        raw = affine("e")
        head, _, body = raw.partition(b"\r\n\r\n")
        client = await served.connect()
        client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.read()).status == 100
        client.send(body)
        assert (await client.read()).json["id"] == "e"
        # Behind a request that is still being answered, the interim answer waits its turn.
        served.door.held = []
        client.send(affine("first") + head + b"\r\nExpect: 100-continue\r\n\r\n")
        await until(lambda: len(served.door.held or []) == 1)
        served.door.release([0])
        served.door.held = None
        assert (await client.read()).json["id"] == "first"
        assert (await client.read()).status == 100
        client.send(body)
        assert (await client.read()).json["id"] == "e"
        client.close()
        # What would be refused is refused before it is sent.
        client = await served.connect()
        client.send(http("POST", "/v1/outcomes", Content_Length=10**9, Expect="100-continue"))
        assert (await client.read()).status == 413
        client.close()

    with_server(test)


def test_keep_alive_by_version() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert (await client.read()).headers["connection"] == "close"
        assert await client.ended()
        client = await served.connect()
        for _ in range(2):
            client.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.read()).headers["connection"] == "keep-alive"
        client.send(http("GET", "/v2/health/live", Upgrade="h2c", Connection="Upgrade"))
        reply = await client.read()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.ended()
        client.close()

    with_server(test)


def test_head_answers_as_get_without_a_body() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(http("HEAD", "/v2/models/affine") + http("GET", "/v2/models/affine"))
        head, get = await client.read(head=True), await client.read()
        assert head.headers == get.headers
        client.close()

    with_server(test)


# Bounds and slowness.


def test_half_requests_time_out() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        for half, within_s, words in (
            (affine()[:30], 10, "headers did not come within 10 s"),
            (affine()[:-5], 60, "body did not come within 60 s"),
            (chunked(affine())[:-5], 60, "body did not come within 60 s"),
        ):
            client = await served.connect()
            client.send(half)
            await pass_time(clock, within_s - 1)
            assert not client.reader.at_eof()
            await pass_time(clock, 3)
            reply = await client.read()
            assert (reply.status, reply.headers["connection"]) == (408, "close")
            assert words in reply.error
            assert await client.ended()
            client.close()

    with_server(test, clock=clock)


def test_a_client_that_drips_bytes_gains_no_time() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        client = await served.connect()
        for byte in b"GET / HTTP/1":
            client.send(bytes([byte]))
            await pass_time(clock, 1)
        assert (await client.read()).status == 408
        client.close()

    with_server(test, clock=clock)


def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        idle, busy = await served.connect(), await served.connect()
        idle.send(http("GET", "/v2/health/live"))
        assert (await idle.read()).status == 200
        served.door.held = []
        busy.send(affine("slow"))
        await until(lambda: bool(served.door.held))
        await pass_time(clock, 80)
        assert await idle.ended()
        served.door.release([0])
        assert (await busy.read()).json["id"] == "slow"
        await pass_time(clock, 2)
        served.door.held = None
        busy.send(affine("again"))
        assert (await busy.read()).json["id"] == "again", "idleness counts from the answer"
        busy.close()

    with_server(test, clock=clock)


def test_pipelining_is_bounded_and_the_rest_waits() -> None:
    async def test(served: Served) -> None:
        served.door.held = []
        client = await served.connect()
        for at in range(2000):
            client.send(affine(str(at)))
        await until(lambda: len(served.door.held or []) == 4)
        await asyncio.sleep(0.05)
        assert len(served.door.held) == 4, "no more than the bound is in flight"
        (connection,) = served.http.connections
        assert len(connection._waiting) * 100 < SLICE_BYTES * 2, "what is parsed ahead is bounded by one slice"
        for at in range(2000):
            if at % 4 == 0:
                await until(lambda: len(served.door.held or []) == 4)
                served.door.release([3, 2, 1, 0])
            assert (await client.read()).json["id"] == str(at)
        client.close()

    with_server(test, HttpLimits(pipelined_max=4))


def test_whatever_is_refused_gives_its_memory_back() -> None:
    """A body in several pieces, refused in every way that comes after it."""

    async def test(served: Served) -> None:
        body = b"x" * 50_000
        for line, more in (
            (b"POST /v2 HTTP/2.0", b""),
            (b"POST /v2 HTTP/0.9", b""),
            (b"POST /nowhere HTTP/1.1", b""),
            (b"POST /v2/models/affine/infer HTTP/1.1", b"Inference-Header-Content-Length: 9999999\r\n"),
        ):
            client = await served.connect()
            head = line + b"\r\nHost: x\r\n" + more + b"Content-Length: %d\r\n\r\n" % len(body)
            for part in (head, body[:20_000], body[20_000:]):
                client.send(part)
                await asyncio.sleep(0.01)
            assert (await client.read()).status >= 400
            client.close()
        await until(lambda: not served.http.connections)
        assert served.http.held_bytes == 0 and served.http.under_way == 0

    with_server(test)


def test_idle_connections_keep_nobody_out() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        idle = [await served.connect() for _ in range(4)]
        await until(lambda: len(served.http.connections) == 4)
        refused = await served.connect()
        assert (await refused.read()).status == 503, "they have only just come"
        for _ in range(4):
            clock.advance(0.5)
            await asyncio.sleep(0)
        idle[0].send(affine("mine"))
        assert (await idle[0].read()).json["id"] == "mine"
        asks = await served.connect()
        asks.send(affine("new"))
        assert (await asks.read()).json["id"] == "new"
        idle[0].send(affine("again"))
        assert (await idle[0].read()).json["id"] == "again", "who asked lately stays"
        for client in (*idle, refused, asks):
            client.close()

    with_server(test, HttpLimits(connections_max=4), clock=clock)


def test_an_upgrade_with_a_body_is_told_why() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
                    b"Upgrade: h2c\r\nContent-Length: 2\r\n\r\n{}")  # fmt: skip
        told = await client.read()
        assert told.status == 400 and "Upgrade" in told.json["error"]
        client.close()

    with_server(test)


def test_web_pages_control_nothing() -> None:
    async def test(served: Served) -> None:
        for path in (b"/v2/repository/models/affine/unload", b"/v1/outcomes"):
            client = await served.connect()
            client.send(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nContent-Length: 2"
                        b"\r\n\r\n[]")  # fmt: skip
            told = await client.read()
            assert told.status == 403 and "web pages" in told.json["error"]
            client.close()

    with_server(test)


def test_json_is_bounded_below_the_body() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        body = b'{"inputs":[' + b"[]," * (3 << 20) + b"[]]}"
        client.send(
            b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        told = await client.read()
        assert told.status == 413 and "send large tensors in binary" in told.json["error"]
        client.close()

    with_server(test)


def test_a_crowd_that_pipelines_has_one_request_each_under_way() -> None:
    """Else everything that a crowd sends is read, and refused, before any batch can start."""

    async def test(served: Served) -> None:
        served.door.held = []
        clients = [await served.connect() for _ in range(6)]
        for client in clients:
            for at in range(5):
                client.send(affine(str(at)))
            await asyncio.sleep(0.01)
        await until(lambda: len(served.door.held or []) == 8 + 4)
        await asyncio.sleep(0.05)
        assert len(served.door.held) == 12, "eight by the bound, and one of each that came after"
        told = []
        for _ in range(30):
            if served.door.held:
                served.door.release(range(len(served.door.held)))
                served.door.held = []
            await asyncio.sleep(0.01)
        for client in clients:
            told += [(await client.read()).json["id"] for _ in range(5)]
            client.close()
        assert told == [str(at) for _ in range(6) for at in range(5)]
        await until(lambda: served.http.under_way == 0)

    with_server(test, HttpLimits(under_way_max=8))


def test_a_reader_that_does_not_read_holds_little_and_is_cut_off() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        client = await served.connect()
        request = affine_binary("big", (1.0, 2.0, 3.0) * 10_000)
        client.reader._limit = 1 << 16  # type: ignore[attr-defined]  # the client reads no more than this
        for _ in range(400):
            client.send(request)
        await until(lambda: any(connection._paused for connection in served.http.connections))
        await asyncio.sleep(0.05)
        calls = len(served.door.calls)
        await asyncio.sleep(0.05)
        assert len(served.door.calls) == calls < 400, "a client that does not read gets nothing more computed"
        (connection,) = served.http.connections
        assert connection._transport.get_write_buffer_size() < 2 << 20
        await pass_time(clock, 31)
        await until(lambda: not served.http.connections)
        assert served.http.held_bytes == 0
        client.close()

    with_server(test, clock=clock)


def test_a_slow_reader_gets_everything_once_it_reads() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        request = affine_binary("big", (1.0, 2.0, 3.0) * 10_000)
        for _ in range(100):
            client.send(request)
        await asyncio.sleep(0.2)
        for _ in range(100):
            assert (await client.read()).status == 200
        client.close()

    with_server(test, HttpLimits(unsent_bytes_max=1 << 16))


def test_connections_are_bounded() -> None:
    async def test(served: Served) -> None:
        clients = [await served.connect() for _ in range(2)]
        await until(lambda: len(served.http.connections) == 2)
        third = await served.connect()
        reply = await third.read()
        assert (reply.status, reply.headers["connection"], reply.headers["retry-after"]) == (503, "close", "1")
        assert await third.ended()
        clients[0].close()
        await until(lambda: len(served.http.connections) == 1)
        assert (await served.ask(affine())).status == 200
        clients[1].close()

    with_server(test, HttpLimits(connections_max=2))


def test_bodies_over_the_bound_are_refused_early_and_late() -> None:
    limits = HttpLimits(body_bytes_max=100_000, held_bytes_max=150_000)

    async def test(served: Served) -> None:
        reply = await served.ask(http("POST", "/v1/outcomes", Content_Length=100_001))
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        endless = chunked(http("POST", "/v1/outcomes", b"x" * 200_000), 9_000)
        assert (await served.ask(endless)).status == 413
        # Two that are allowed alone are too much together.
        half = http("POST", "/v1/outcomes", b" " * 99_000)[:-1]
        first = await served.connect()
        first.send(half)
        await until(lambda: served.http.held_bytes > 90_000)
        assert (await served.ask(half)).status == 503
        first.close()
        await until(lambda: served.http.held_bytes == 0)
        assert (await served.ask(half + b" ")).status == 400

    with_server(test, limits)


@pytest.mark.parametrize("endless", [b"GET / HTTP/1.1\r\nX: ", http("POST", "/", Transfer_Encoding="chunked") + b"5;"])
def test_what_has_no_end_is_cut_off(endless: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(endless)
        for _ in range(20):
            client.send(b"a" * 10_000)
            await asyncio.sleep(0)
        assert (await client.read()).status == 431
        client.close()

    with_server(test)


def test_an_endless_trailer_is_cut_off() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(chunked(affine())[:-2] + b"X: ")
        for _ in range(20):
            client.send(b"a" * 10_000)
            await asyncio.sleep(0)
        assert (await client.read()).status == 431
        client.close()

    with_server(test)


def test_a_refused_client_can_read_why_while_it_still_sends() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(http("POST", "/v1/outcomes", Content_Length=1 << 30))
        client.send(b"x" * (4 << 20))
        await client.writer.drain()
        assert (await client.read()).status == 413
        assert await client.ended()
        await pass_time(clock, 3)
        await until(lambda: not served.http.connections)
        client.close()

    with_server(test, clock=clock)


# Disconnects and the end.


def test_a_disconnect_cancels_what_nobody_will_read() -> None:
    async def test(served: Served) -> None:
        leaves: list[Callable[[Client], None]] = [
            lambda client: client.close(),
            lambda client: client.writer.transport.abort(),
            lambda client: client.writer.write_eof(),
        ]
        for leave in leaves:
            served.door.held = []
            client = await served.connect()
            client.send(affine() + affine())
            await until(lambda: len(served.door.held or []) == 2)
            leave(client)
            await until(lambda: all(future.cancelled() for future, _ in served.door.held or []))
            await until(lambda: not served.http.connections)
            client.close()
        served.door.held = None
        assert (await served.ask(affine())).status == 200

    with_server(test)


def test_a_stop_finishes_what_is_in_flight() -> None:
    async def test(served: Served) -> None:
        served.door.held = []
        idle, busy, half = [await served.connect() for _ in range(3)]
        busy.send(affine("one") + affine("two"))
        half.send(affine("three")[:-4])
        await until(lambda: len(served.door.held or []) == 2)
        stopping = asyncio.ensure_future(served.http.stop())
        assert await idle.ended()
        with pytest.raises(OSError):
            await served.connect()
        half.send(affine("three")[-4:])
        await until(lambda: len(served.door.held or []) == 3)
        assert not stopping.done()
        served.door.release([1, 0, 2])
        for client, names in ((busy, ["one", "two"]), (half, ["three"])):
            replies: list[Reply] = [await client.read() for _ in names]
            assert [reply.json["id"] for reply in replies] == names
            assert [reply.headers.get("connection") for reply in replies] == [None] * (len(names) - 1) + ["close"]
            assert await client.ended()
            client.close()
        await stopping
        idle.close()

    with_server(test)


def test_a_stop_does_not_wait_for_ever() -> None:
    clock = FakeClock()

    async def test(served: Served) -> None:
        served.door.held = []
        client = await served.connect()
        client.send(affine())
        await until(lambda: bool(served.door.held))
        stopping = asyncio.ensure_future(served.http.stop())
        await pass_time(clock, 31)
        await stopping
        assert await client.ended()
        assert served.door.held[0][0].cancelled()
        client.close()

    with_server(test, clock=clock)


def test_connections_leave_nothing_behind() -> None:
    """No reference cycles keep a closed connection: memory stays flat without the collector."""

    async def test(served: Served) -> None:
        await served.ask(affine())
        await until(lambda: not served.http.connections)
        gc.collect()
        before = sum(isinstance(o, Connection | Exchange) for o in gc.get_objects())  # what other tests keep
        gc.disable()
        try:
            for _ in range(20):
                await served.ask(affine(), http("GET", "/nowhere"))
            await until(lambda: not served.http.connections)
            await asyncio.sleep(0.01)
            after = sum(isinstance(o, Connection | Exchange) for o in gc.get_objects())
        finally:
            gc.enable()
        assert after - before <= 2

    with_server(test)


def test_unread_answers_of_all_are_bounded_and_who_has_not_read_for_longest_goes() -> None:
    size = 20_000_000  # beyond what the sockets' own buffers take

    def large() -> bytes:
        raw = bytes(size)
        inputs = [tensor("v", "FP32", [1, size // 4], parameters={"binary_data_size": size})]
        return infer("echo-FP32", inputs, raw, parameters={"binary_data_output": True})

    async def test(served: Served) -> None:
        readers = []
        cut = served.meter.counter("millstream_timeouts_total", "", {"port": "http"})
        for at in range(3):
            client = await served.connect()
            client.writer.transport.pause_reading()
            client.send(large())
            await until(lambda at=at: len(served.http.unread) == at + 1 or cut.value)
            readers.append(client)
        first, *others = readers
        assert cut.value == 1 and len(served.http.unread) == 2
        assert served.http._unread_bytes <= 2 * size
        first.writer.transport.resume_reading()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await first.read()
        for client in others:
            client.writer.transport.resume_reading()
            assert len((await client.read()).body) > size
            client.close()
        assert not served.http.unread and served.http._unread_bytes == 0

    with_server(test, HttpLimits(unread_bytes_max=2 * size))
