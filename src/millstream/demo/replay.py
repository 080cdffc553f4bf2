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
from collections import deque
from collections.abc import Sequence

import msgspec
import orjson

from millstream.clock import Clock
from millstream.demo.data import Shown
from millstream.demo.pipe import PIPELINED_MAX, Answer, Books, Pipe
from millstream.types import Outcome, Ranked

CONNECTIONS = 8
IN_FLIGHT_MAX = 32
AHEAD_S = 60.0  # how far the end moves time on, so that no window stays open


class Replay:
    """Replays moments, `rate` a second to aim at, and notes scores and latencies; the rest is in `books`.

    `scores[k]` is the score of the shown item in the answer to moment k (NaN until then).
    """

    def __init__(self, shown: Sequence[Shown], books: Books, host: str, port: int, clock: Clock, rate: float) -> None:
        self.shown, self._clock, self._rate = shown, clock, rate
        self._ranks = [Pipe(host, port, clock) for _ in range(CONNECTIONS)]
        self._outcomes = Pipe(host, port, clock)
        self._books = books
        self.scores: list[float] = []
        self.labels: list[bool] = []
        self.latencies: list[float] = []
        self.began = 0.0
        self._today = self._told = 0.0
        self.stopping = asyncio.Event()

    @property
    def seconds(self) -> float:
        """Since the first request; 0.0 before it."""
        return self._clock.monotonic() - self.began if self.began else 0.0

    @property
    def log_seconds(self) -> float:
        """Time of the past replayed so far."""
        return self.shown[len(self.scores) - 1].event_time - self.shown[0].event_time if self.scores else 0.0

    @property
    def told(self) -> float:
        """The event time up to which it has told what happened, unix seconds; now, while it has nothing to tell."""
        return self._told or self._clock.now()

    def _due(self, number: int) -> float:
        """When a moment is to be sent, unix seconds: its event time here."""
        return self._today + number / self._rate

    async def run(self) -> None:
        """Until the moments end or `stopping` is set; returns when everything sent has been answered."""
        self.began, self._today = self._clock.monotonic(), self._clock.now()
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
            self._told = self._due(number)
            heapq.heappush(coming, (moment.event_time + moment.delay_s, number))
        while coming:
            sent.append(await self._report("like", self._due(number + 1), heapq.heappop(coming)[1]))
        sent.append(await self._send(Outcome(kind="watermark", event_time=self._due(number + 1) + AHEAD_S)))
        self._told = 0.0
        await asyncio.gather(*sent, return_exceptions=True)

    def _score(self, answer: Answer, item: str) -> float:
        if answer.status != 200:
            self._books.count_error(answer)
            return float("nan")
        ranked = msgspec.json.decode(answer.body, type=Ranked)
        score = next((candidate.score for candidate in ranked.items if candidate.item == item), None)
        if score is None:
            self._books.count_error(answer)
            return float("nan")
        return score

    async def _report(self, kind: str, event_time: float, number: int) -> asyncio.Future[Answer]:
        moment = self.shown[number]
        value = float(moment.like) if kind == "like" else 1.0
        outcome = Outcome(request=f"demo-{number}", item=moment.item, kind=kind, value=value, event_time=event_time)
        return await self._send(outcome)

    async def _send(self, outcome: Outcome) -> asyncio.Future[Answer]:
        return await self._books.tell(self._outcomes, [outcome])
