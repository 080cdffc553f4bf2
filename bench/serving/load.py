"""The load generator, in a process of its own: closed loop (as fast as answers come) and open loop (as time passes).

A closed loop measures what a request costs; an open loop, whose clients do not wait for anybody, measures what people
feel. In an open loop a latency counts from the moment the request was due, also when the generator was late.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import resource
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from clients import Broken, Client, connect

Arrival = tuple[float, int]  # when it is due, in seconds from the start, and which request


class LoadFailed(Exception):
    """The generator could not go on: what it saw."""


@dataclass
class Closed:
    """`seconds` of a closed loop on `connections`, each sending the next of `requests` when the last is answered."""

    protocol: str
    port: int
    requests: list[bytes]
    connections: int
    seconds: float
    warm_s: float


@dataclass
class Open:
    """Requests as they are due, on as many connections as are needed, up to `connections`."""

    port: int
    requests: list[bytes]
    arrivals: list[Arrival]
    connections: int
    patience_s: float = 10.0
    until_told: bool = False  # stop when `during` is over, whatever is still to come


@dataclass
class Counted:
    """What an open loop saw: (which request, status, latency in s, due in s) of every answer; how many had none."""

    answers: list[tuple[int, int, float, float]] = field(default_factory=list)
    unanswered: int = 0


def closed(plan: Closed, before: Callable[[], Any], after: Callable[[], Any]) -> tuple[list[float], Any, Any]:
    """Sorted latencies in seconds, and what `before` and `after` gave at the window's two ends. Raises LoadFailed."""
    with _generator(_closed, plan) as pipe:
        _told(pipe)
        first = before()
        latencies = _told(pipe)
        return sorted(latencies), first, after()


def opened(plan: Open, during: Callable[[], Any] = lambda: None) -> Counted:
    """Run an open loop, and `during` while it runs. Raises LoadFailed."""
    with _generator(_open, plan) as pipe:
        _told(pipe)
        during()
        if plan.until_told:
            pipe.send("stop")
        return _told(pipe)


@contextlib.contextmanager
def _generator(target: Callable[[Any, Connection], None], plan: Any) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_guarded, args=(target, plan, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(30.0)
        process.kill()


def _told(pipe: Connection) -> Any:
    try:
        said = pipe.recv()
    except EOFError:
        raise LoadFailed("the load generator died") from None
    if isinstance(said, str) and said != "go":
        raise LoadFailed(said)
    return said


def _guarded(target: Callable[[Any, Connection], None], plan: Any, pipe: Connection) -> None:
    try:
        target(plan, pipe)
    except (Broken, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")


def _closed(plan: Closed, pipe: Connection) -> None:
    poll, by_fd, turn = select.epoll(), {}, {}
    for at in range(plan.connections):
        client = connect(plan.protocol, plan.port)
        fd = client.socket.fileno()
        by_fd[fd], turn[fd] = client, at * len(plan.requests) // plan.connections
        poll.register(fd, select.EPOLLIN)
        _next(client, plan.requests[turn[fd]], poll)
    latencies: list[float] = []
    for span, counts in ((plan.warm_s, False), (plan.seconds, True)):
        latencies = []
        until = last = time.perf_counter()
        until += span
        while (now := time.perf_counter()) < until:
            if now - last > 60.0:
                raise Broken("no answer for 60 s")
            for fd, event in poll.poll(1.0):
                client = by_fd[fd]
                if event & select.EPOLLOUT:
                    _flush(client, poll)
                if event & ~select.EPOLLOUT and client.answered():
                    last = time.perf_counter()
                    latencies.append(last - client.sent_at)
                    if client.status != 200:
                        raise Broken(f"answered {client.status}: {client.answer[:300]!r}")
                    turn[fd] = (turn[fd] + 1) % len(plan.requests)
                    _next(client, plan.requests[turn[fd]], poll)
                elif client.wants_write:
                    _watch(client, poll)
        pipe.send(latencies if counts else "go")


def _next(client: Client, request: bytes, poll: select.epoll) -> None:
    client.sent_at = time.perf_counter()
    client.send(request)
    if client.wants_write:
        _watch(client, poll)


def _watch(client: Client, poll: select.epoll) -> None:
    poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)


def _flush(client: Client, poll: select.epoll) -> None:
    client.flush()
    if not client.wants_write:
        poll.modify(client.socket, select.EPOLLIN)


def _open(plan: Open, pipe: Connection) -> None:
    _many_files(plan.connections + 64)
    poll, by_fd = select.epoll(), {}
    free: list[Client] = []
    busy: dict[Client, Arrival] = {}
    counted = Counted()
    pipe.send("go")
    start = time.perf_counter()
    at, waiting, end = 0, plan.arrivals, (plan.arrivals[-1][0] if plan.arrivals else 0.0) + plan.patience_s
    while (now := time.perf_counter() - start) < end and (at < len(waiting) or busy):
        if plan.until_told and pipe.poll():
            pipe.recv()
            waiting, end = waiting[:at], now + plan.patience_s
        while at < len(waiting) and waiting[at][0] <= now and (free or len(by_fd) < plan.connections):
            client = free.pop() if free else _opened(plan.port, by_fd, poll)
            busy[client] = waiting[at]
            _next(client, plan.requests[waiting[at][1]], poll)
            at += 1
        pause = waiting[at][0] - now if at < len(waiting) else 0.1
        for fd, event in poll.poll(max(0.0, min(pause, 0.1))):
            client = by_fd[fd]
            if event & select.EPOLLOUT:
                _flush(client, poll)
            if not event & ~select.EPOLLOUT:
                continue
            try:
                done = client.answered()
            except (Broken, OSError):
                poll.unregister(fd)
                del by_fd[fd]
                counted.unanswered += busy.pop(client, None) is not None
                free = [one for one in free if one is not client]
                client.close()
                continue
            if done:
                due, which = busy.pop(client)
                counted.answers.append((which, client.status, time.perf_counter() - start - due, due))
                free.append(client)
    counted.unanswered += len(busy) + len(waiting) - at
    pipe.send(counted)


def _opened(port: int, by_fd: dict[int, Client], poll: select.epoll) -> Client:
    client = connect("binary", port)
    by_fd[client.socket.fileno()] = client
    poll.register(client.socket, select.EPOLLIN)
    return client


def _many_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard > 0 else count, hard))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values; nan of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def poisson(rate: float, seconds: float, which: Sequence[int], seed: int) -> list[Arrival]:
    """Arrivals of a Poisson process, each one of `which` requests in turn."""
    draw, now, out = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        out.append((now, which[len(out) % len(which)]))
    return out


def merged(*streams: list[Arrival]) -> list[Arrival]:
    return sorted((one for stream in streams for one in stream), key=lambda one: one[0])
