"""The demo's client: replays the past over HTTP the way any back end would live it.

For each moment: ask for a ranking; when the answer is there, report the impression of the one item that was shown; and
when its time has come, as a call of its own, whether it was liked. Rankings run side by side; outcomes go out on one
connection in the order of time. What is said happens today: the event time of a moment is when it was due, so windows
of features are spans of the wall clock, and the order of things is that of the past. Every call carries an id of the
client's, so whatever a crash leaves unanswered is simply sent again.
"""

from __future__ import annotations

import asyncio
import heapq
import io
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import httptools
import msgspec
import orjson

from millstream.clock import Clock
from millstream.demo.data import Shown
from millstream.errors import Error
from millstream.types import Outcome, Ranked

CONNECTIONS = 8
IN_FLIGHT_MAX = 32
PIPELINED_MAX = 48
RECONNECT_S_MAX = 30.0
AHEAD_S = 60.0  # how far the end moves time on, so that no window stays open


class Unreachable(Error):
    """The service did not come back in time."""

    status = 503
    code = "UNAVAILABLE"


class Answer(msgspec.Struct):
    """A whole HTTP answer and how long it took, seconds."""

    status: int
    body: bytes
    seconds: float


class _Call(msgspec.Struct):
    raw: bytes
    future: asyncio.Future[Answer]
    began: float


class Pipe(asyncio.Protocol):
    """One keep-alive connection, pipelined. What a lost connection leaves unanswered is sent again, in order."""

    def __init__(self, host: str, port: int, clock: Clock) -> None:
        self._host, self._port, self._clock = host, port, clock
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.WriteTransport | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._closed = False
        self._room = asyncio.Semaphore(PIPELINED_MAX)

    async def post(self, path: str, body: bytes) -> asyncio.Future[Answer]:
        """Send as soon as fewer than PIPELINED_MAX calls wait; the returned future is the answer."""
        await self._room.acquire()
        raw = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            path.encode(),
            self._host.encode(),
            len(body),
        )
        call = _Call(raw + body, asyncio.get_running_loop().create_future(), self._clock.monotonic())
        self._calls.append(call)
        if self._transport is not None:
            self._transport.write(call.raw)
        elif self._coming_back is None:
            self._coming_back = asyncio.create_task(self._connect())
        return call.future

    def close(self) -> None:
        """Hang up; what is unanswered stays so."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    async def _connect(self) -> None:
        loop, began = asyncio.get_running_loop(), self._clock.monotonic()
        while not self._closed:
            try:
                await loop.create_connection(lambda: self, self._host, self._port)
                break
            except OSError as error:
                if self._clock.monotonic() - began > RECONNECT_S_MAX:
                    gone = Unreachable(f"{self._host}:{self._port} did not answer for {RECONNECT_S_MAX:.0f} s: {error}")
                    while self._calls:
                        self._calls.popleft().future.set_exception(gone)
                    break
                await self._clock.sleep(0.1)
        self._coming_back = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, again perhaps: send everything that is unanswered."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one without being a subclass
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        for call in self._calls:
            self._transport.write(call.raw)

    def data_received(self, data: bytes) -> None:
        """Parse; whole answers go to those who wait."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of an answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A whole answer: it is the oldest call's."""
        call = self._calls.popleft()
        self._room.release()
        seconds = self._clock.monotonic() - call.began
        if not call.future.done():
            call.future.set_result(Answer(self._parser.get_status_code(), b"".join(self._body), seconds))
        self._body.clear()

    def connection_lost(self, error: Exception | None) -> None:
        """Come back as long as calls wait."""
        self._transport = None
        if self._calls and not self._closed and self._coming_back is None:
            self._coming_back = asyncio.create_task(self._connect())


class Replay:
    """Replays moments and keeps the books: scores, latencies, errors, and a ledger of what was acknowledged.

    `scores[k]` is the score of the shown item in the answer to moment k (NaN until then).
    """

    def __init__(self, shown: Sequence[Shown], ledger: Path, host: str, port: int, clock: Clock, rate: float) -> None:
        """`rate`: requests a second to aim at."""
        self.shown, self._clock, self._rate = shown, clock, rate
        self._ranks = [Pipe(host, port, clock) for _ in range(CONNECTIONS)]
        self._outcomes = Pipe(host, port, clock)
        self._path = ledger
        self._ledger: IO[bytes] = io.BytesIO()
        self.scores: list[float] = []
        self.labels: list[bool] = []
        self.latencies: list[float] = []
        self.errors = 0
        self.first_error = ""
        self.acknowledged = 0
        self.began = 0.0
        self._today = 0.0
        self.stopping = asyncio.Event()

    @property
    def seconds(self) -> float:
        """Since the first request; 0.0 before it."""
        return self._clock.monotonic() - self.began if self.began else 0.0

    @property
    def log_seconds(self) -> float:
        """Time of the past replayed so far."""
        return self.shown[len(self.scores) - 1].event_time - self.shown[0].event_time if self.scores else 0.0

    def _due(self, number: int) -> float:
        """When a moment is to be sent, unix seconds: its event time here."""
        return self._today + number / self._rate

    async def run(self) -> None:
        """Until the moments end or `stopping` is set; returns when everything sent has been answered."""
        self.began, self._today = self._clock.monotonic(), self._clock.now()
        self._ledger = self._path.open("wb")
        asked: asyncio.Queue[tuple[int, asyncio.Future[Answer]] | None] = asyncio.Queue(IN_FLIGHT_MAX)
        following = asyncio.create_task(self._follow(asked))
        for number, moment in enumerate(self.shown):
            if self.stopping.is_set() or following.done():
                break
            early = self.began + number / self._rate - self._clock.monotonic()
            if early > 0.002:
                await self._clock.sleep(early)
            body = orjson.dumps(
                {
                    "id": f"demo-{number}",
                    "user": moment.user,
                    "candidates": moment.candidates,
                    "event_time": self._due(number),
                }
            )
            await asked.put((number, await self._ranks[number % CONNECTIONS].post("/v1/recommend", body)))
        await asked.put(None)
        await following
        for pipe in (*self._ranks, self._outcomes):
            pipe.close()
        self._ledger.close()

    async def _follow(self, asked: asyncio.Queue[tuple[int, asyncio.Future[Answer]] | None]) -> None:
        """Take the answers in order of time and report what the person did."""
        sent: deque[asyncio.Future[Answer]] = deque(maxlen=PIPELINED_MAX)
        coming: list[tuple[float, int]] = []  # outcomes that lie ahead: (time in the past, moment)
        number = 0
        while (one := await asked.get()) is not None:
            number, future = one
            moment, answer = self.shown[number], await future
            self.latencies.append(answer.seconds)
            self.labels.append(moment.like)
            self.scores.append(self._score(answer, moment.item))
            while coming and coming[0][0] <= moment.event_time:
                sent.append(await self._report("like", self._due(number), heapq.heappop(coming)[1]))
            sent.append(await self._report("impression", self._due(number), number))
            heapq.heappush(coming, (moment.event_time + moment.delay_s, number))
        while coming:
            sent.append(await self._report("like", self._due(number + 1), heapq.heappop(coming)[1]))
        sent.append(await self._send(Outcome(kind="watermark", event_time=self._due(number + 1) + AHEAD_S)))
        await asyncio.gather(*sent, return_exceptions=True)

    def _score(self, answer: Answer, item: str) -> float:
        if answer.status != 200:
            self._count_error(answer)
            return float("nan")
        ranked = msgspec.json.decode(answer.body, type=Ranked)
        score = next((candidate.score for candidate in ranked.items if candidate.item == item), None)
        if score is None:
            self._count_error(answer)
            return float("nan")
        return score

    async def _report(self, kind: str, event_time: float, number: int) -> asyncio.Future[Answer]:
        moment = self.shown[number]
        value = float(moment.like) if kind == "like" else 1.0
        outcome = Outcome(request=f"demo-{number}", item=moment.item, kind=kind, value=value, event_time=event_time)
        return await self._send(outcome)

    async def _send(self, outcome: Outcome) -> asyncio.Future[Answer]:
        body = {name: getattr(outcome, name) for name in ("request", "item", "kind", "value", "event_time")}
        future = await self._outcomes.post("/v1/outcomes", orjson.dumps(body))
        future.add_done_callback(lambda done: self._acknowledge(outcome, done))
        return future

    def _acknowledge(self, outcome: Outcome, done: asyncio.Future[Answer]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        if done.result().status != 200:
            self._count_error(done.result())
        elif outcome.kind != "watermark":
            self.acknowledged += 1
            self._ledger.write(orjson.dumps({"outcome": outcome.key(), "event_time": outcome.event_time}) + b"\n")

    def _count_error(self, answer: Answer) -> None:
        self.errors += 1
        self.first_error = self.first_error or f"{answer.status} {answer.body[:300].decode(errors='replace')}"
