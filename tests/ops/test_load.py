"""Load generators against small servers of known behaviour: what is charged to whom, and books that balance."""

import asyncio
import contextlib
import random
import subprocess
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Error
from millstream.ops import generator
from millstream.ops.generator import Connection, Generator, Order, Setup, answer_bytes, schedule
from millstream.ops.load import Load, merge, numbers

REQUEST = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"


def answered(status=200, body=b"ok", more=b""):
    return b"HTTP/1.1 %d Told\r\n%bInference-Header-Content-Length: 1\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        more,
        len(body),
        body,
    )


class Server:
    """`react(number)` says what becomes of the n-th request: (seconds to wait, bytes to answer; none: hang up)."""

    def __init__(self, react=lambda number: (0.0, answered())):
        self.react, self.count, self.open, self.open_most, self.connections = react, 0, 0, 0, 0
        self.stall = 0.0

    async def serve(self, reader, writer):
        self.connections += 1
        answers = asyncio.Queue()
        leaving = asyncio.create_task(self.answer(answers, writer))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readexactly(len(REQUEST))
                self.open += 1
                self.open_most = max(self.open, self.open_most)
                number, self.count = self.count, self.count + 1
                if self.stall:
                    stall, self.stall = self.stall, 0.0
                    time.sleep(stall)  # the whole server stands still
                answers.put_nowait(self.react(number))
        leaving.cancel()
        self.open -= answers.qsize()
        writer.close()

    async def answer(self, answers, writer):
        while True:
            wait, data = await answers.get()
            await asyncio.sleep(wait)
            self.open -= 1
            if not data:
                writer.close()
                return
            writer.write(data)

    def __enter__(self):
        self.loop, started = asyncio.new_event_loop(), threading.Event()

        async def main():
            self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            self.port = self.server.sockets[0].getsockname()[1]
            self.end = asyncio.Event()
            started.set()
            await self.end.wait()
            self.server.close()

        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(main()))
        self.thread.start()
        started.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    def run(self, **order):
        order = {"rate": 0.0, "seconds": 0.3, "connections": 8, "grace_s": 1.0} | order
        return Generator(Setup("127.0.0.1", self.port, [REQUEST])).run(Order(**order))


def books(tally):
    return sum(tally.statuses.values()) + tally.broken + tally.unanswered + tally.unsent


def p(tally, q, column="took_ms"):
    return float(np.quantile(numbers(getattr(tally, column)), q))


def test_a_stall_is_charged_for_every_request_that_was_due_meanwhile():
    with Server() as server:
        server.stall = 0.4
        open_loop = server.run(rate=300, seconds=1.0, connections=4)
        server.stall = 0.4
        closed = server.run(seconds=1.0, connections=1)
    assert p(closed, 0.99) < 100, "a client that waits for its answer sees one slow request and no more"
    assert p(open_loop, 0.75) > 80, "of 300 a second, 120 were due while the server stood still"
    assert p(open_loop, 0.99) > 300
    late = numbers(open_loop.took_ms) > 50
    assert 60 <= late.sum() <= 240
    assert books(open_loop) == open_loop.scheduled == 300


def test_waiting_for_a_connection_counts_from_when_the_request_was_due():
    with Server(lambda number: (0.02, answered())) as server:
        tally = server.run(rate=100, seconds=0.5, connections=1)
    assert p(tally, 0.5, "served_ms") < 60
    assert p(tally, 0.9) > 150, "one connection answers 50 a second at most, 100 were due"
    assert tally.lag_ms < 100, "that is not the generator's fault"


def test_what_the_generator_is_late_with_is_said(monkeypatch):
    made = Generator.request
    monkeypatch.setattr(Generator, "request", lambda self: time.sleep(0.01) or made(self))
    with Server() as server:
        tally = server.run(rate=200, seconds=0.5, connections=50)
    assert tally.lag_ms > 100


def test_a_rate_is_kept_and_its_requests_come_like_those_of_strangers():
    with Server() as server:
        tally = server.run(rate=400, seconds=0.5)
    assert tally.scheduled == 200 and tally.statuses == {200: 200}
    due = numbers(tally.due)
    assert due.min() >= 0 and due.max() <= 0.5
    gaps = np.diff(schedule(Order(rate=5000.0, seconds=2.0, connections=1)))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "Poisson: gaps are as spread as they are long"
    assert schedule(Order(rate=50.0, seconds=1.0, connections=1, seed=1)) != schedule(
        Order(rate=50.0, seconds=1.0, connections=1, seed=2)
    )


def test_a_window_is_bounded():
    with pytest.raises(ValueError, match="at most"):
        schedule(Order(rate=1e9, seconds=1.0, connections=1))


REACTIONS = {
    "all well": lambda number: (0.0, answered()),
    "refusals": lambda number: (0.0, answered((200, 429, 503)[number % 3])),
    "hanging up": lambda number: (0.0, answered() if number % 7 else b""),
    "the last of its connection": lambda number: (0.0, answered(503, more=b"Connection: close\r\n")),
    "nonsense": lambda number: (0.0, answered() if number % 5 else b"SSH-2.0\r\n\r\n"),
    "more answers than requests": lambda number: (0.0, answered() * (1 + (number % 9 == 0))),
    "never": lambda number: (60.0 if number % 4 == 0 else 0.0, answered()),
    "big": lambda number: (0.0, answered(body=b"x" * 300_000)),
}


@pytest.mark.parametrize("pipeline", [1, 4])
@pytest.mark.parametrize("name", REACTIONS)
def test_every_request_ends_in_one_place(name, pipeline):
    with Server(REACTIONS[name]) as server:
        grace_s = 0.1 if name == "never" else 5.0  # a busy machine may be slow, and loses no answer for that
        tally = server.run(rate=200, seconds=0.25, connections=5, pipeline=pipeline, grace_s=grace_s)
    assert books(tally) == tally.scheduled == 50
    assert len(numbers(tally.took_ms)) == tally.statuses.get(200, 0) >= tally.in_time
    if name == "refusals":
        assert {429, 503} < set(tally.statuses) | {0}
        assert tally.statuses[429] > 5
    if name in ("hanging up", "nonsense", "more answers than requests"):
        assert tally.broken > 0
    if name == "never":
        assert tally.unanswered > 0
    if name in ("all well", "big"):
        assert tally.statuses == {200: 50}


def test_a_window_begins_without_the_rest_of_the_one_before():
    with Server(REACTIONS["never"]) as server:
        made = Generator(Setup("127.0.0.1", server.port, [REQUEST]))
        first = made.run(Order(rate=200.0, seconds=0.2, connections=50, grace_s=0.05))
        server.react = REACTIONS["all well"]
        second = made.run(Order(rate=200.0, seconds=0.2, connections=50, grace_s=0.5))
    assert first.unanswered > 0
    assert second.statuses == {200: 40}


@pytest.mark.parametrize(("connections", "pipeline"), [(1, 1), (6, 1), (3, 4)])
def test_no_more_is_open_than_was_allowed(connections, pipeline):
    with Server(lambda number: (0.01, answered())) as server:
        for rate in (0.0, 2000.0):
            server.run(rate=rate, seconds=0.2, connections=connections, pipeline=pipeline)
        assert server.open_most == connections * pipeline


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((200, 429, 503)), st.binary(max_size=40)), min_size=1), st.data())
def test_answers_are_found_however_the_stream_is_cut(answers, data):
    whole = b"".join(answered(status, body) for status, body in answers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if b > a]

    class Socket:
        def recv(self, size):
            return pieces.pop(0)

    connection = object.__new__(Connection)
    connection.socket, connection.got, connection.need = Socket(), bytearray(), 0
    found = []
    while pieces:
        found += connection.receive()
    assert found == [status for status, _ in answers] and not connection.got


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\ncontent-length: 1\r\n\r\n", b"x" * 70_000]
)
def test_what_is_no_answer_is_not_read_as_one(head):
    with pytest.raises(ConnectionError):
        answer_bytes(bytearray(head))


def test_windows_at_the_same_time_are_added_up():
    with Server() as server:
        one, two = (server.run(rate=100, seconds=0.2, seed=seed) for seed in (1, 2))
    both = merge([one, two])
    assert both.scheduled == 40 and both.statuses == {200: 40} and both.seconds == 0.2
    assert len(numbers(both.took_ms)) == len(numbers(both.due)) == 40
    assert both.lag_ms == max(one.lag_ms, two.lag_ms)


def test_processes_share_an_order_and_end_with_their_owner():
    async def run(port):
        async with Load(Setup("127.0.0.1", port, [REQUEST]), processes=2) as load:
            pids = [process.pid for process in load._processes]
            shared = await load.measure(Order(rate=400.0, seconds=0.3, connections=7))
            single = await load.measure(Order(rate=0.0, seconds=0.1, connections=1))
        return pids, shared, single

    with Server() as server:
        pids, shared, single = asyncio.run(run(server.port))
        assert server.connections == 7
    assert shared.scheduled == books(shared) == 120
    assert single.scheduled == single.statuses[200] > 10
    listed = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True).stdout.split()
    assert not {str(pid) for pid in pids} & set(listed)


def test_a_server_that_is_not_there_and_a_generator_that_dies_are_said():
    async def nobody():
        async with Load(Setup("127.0.0.1", 1, [REQUEST])) as load:
            await load.measure(Order(rate=10.0, seconds=0.1, connections=1))

    with pytest.raises(Error, match="refused"):
        asyncio.run(nobody())

    async def killed(port):
        async with Load(Setup("127.0.0.1", port, [REQUEST])) as load:
            window = asyncio.create_task(load.measure(Order(rate=10.0, seconds=5.0, connections=1)))
            await asyncio.sleep(0.3)
            load._processes[0].kill()
            await window

    with Server() as server, pytest.raises(Error, match="generator ended"):
        asyncio.run(killed(server.port))


def test_requests_take_turns():
    made = Generator(Setup("127.0.0.1", 1, [b"a", b"b", b"c"]))
    assert sorted(made.request() for _ in range(6)) == [b"a", b"a", b"b", b"b", b"c", b"c"]


def test_a_request_that_does_not_fit_the_socket_leaves_in_pieces():
    size = 20_000_000  # more than the system keeps for a socket
    request = b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + random.Random(1).randbytes(size)
    got = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await asyncio.sleep(0.01)
                got.append(await reader.readexactly(len(request)) == request)
                writer.write(answered())

    with Server() as server:
        server.serve = serve
        asyncio.run_coroutine_threadsafe(_swap(server, serve), server.loop).result()
        tally = Generator(Setup("127.0.0.1", server.port, [request])).run(
            Order(rate=10.0, seconds=0.3, connections=2, grace_s=10.0)
        )
    assert tally.statuses == {200: 3} and got == [True] * 3


async def _swap(server, serve):
    server.server.close()
    server.server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 26)
    server.port = server.server.sockets[0].getsockname()[1]


def test_garbage_is_collected_again_after_a_window():
    import gc

    with Server() as server:
        server.run(rate=10)
    assert gc.isenabled()
    assert generator.SCHEDULED_MAX <= 1_000_000, "a window's books stay within some hundred megabytes"
