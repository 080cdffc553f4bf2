"""The world as a client of a running service: it asks, looks, clicks, and knows what better answers were worth.

Rules of the room:
- Requests come at random moments; clicks are told when their delay is over, also while others wait. Those that are on
  their way at the end are told then, early: an item that was clicked must not stay a negative.
- A request that fails is counted, and the next one comes: a service may end and come back. The first one must not fail,
  as there may be no such service.
- One thread asks, so this says how good answers are, not how fast: that is `millstream capacity`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from millstream.errors import Error
from millstream.simulate.truth import Regret, auc
from millstream.simulate.world import Ask, Simulator
from millstream.types import Listing

EACH_S = 10.0  # between two lines of progress
OVER_S = 30.0  # longer than asked for, a service that hangs may hold this up


class Service(Protocol):
    """What of `millstream.client.Client` is needed."""

    def recommend(self, user: str, candidates: tuple[str, ...]) -> Listing: ...

    def outcome(self, request: str, item: str, kind: str) -> object: ...


class Driven(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `requests` were answered and `failed` were not; of the `clicks`, `early` were told before their
    time, at the end, and `lost` outcomes of all sorts never reached the service. Regret is in clicks a request: of the
    answers, of the first and of the last fifth of them, and of random orders; `auc`, and `ratio` (mean score over mean
    probability), are of the scores that were served, against the truth behind the coins."""

    requests: int
    failed: int
    clicks: int
    early: int
    lost: int = 0
    regret: float
    regret_first: float
    regret_last: float
    regret_random: float
    auc: float
    ratio: float


def drive(
    service: Service,
    world: Simulator,
    seconds: float,
    random: np.random.Generator,
    progress: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> Driven:
    """Ask `service` for `seconds`, from now on; the world's own time began when it was made. What the first request
    raises is raised."""
    books, ends = _Books(random), time.monotonic() + seconds + OVER_S
    clicks: list[tuple[float, str, str]] = []
    first: float | None = None
    for ask in world.asks(10**9):
        first = ask.event_time if first is None else first
        while clicks and clicks[0][0] <= ask.event_time:
            _until(clicks[0][0], wait)
            _, request, item = heapq.heappop(clicks)
            service.outcome(request, item, "like")
        if ask.event_time - first > seconds or time.monotonic() > ends:
            break
        _until(ask.event_time, wait)
        try:
            ranked = service.recommend(ask.user, ask.candidates)
        except Error as error:
            if not books.requests:
                raise
            if books.fail():
                progress(f"{ask.event_time - first:6.0f} s  no answer: {error}")
            continue
        places = [ask.candidates.index(one.item) for one in ranked.items]
        for reaction in world.react(ask, places):
            service.outcome(ranked.id, reaction.item, "impression")
            if reaction.clicked:
                books.clicks += 1
                heapq.heappush(clicks, (ask.event_time + reaction.delay_s, ranked.id, reaction.item))
        if books.add(ask, places, [one.score for one in ranked.items]):
            progress(books.line(ask.event_time - first))
    for _, request, item in clicks:
        service.outcome(request, item, "like")
    return books.result(early=len(clicks))


def _until(when: float, wait: Callable[[float], None]) -> None:
    if (seconds := when - time.time()) > 0:
        wait(seconds)


class _Books:
    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._served, self._blind = Regret(), Regret()
        self._scores: list[float] = []
        self._truth: list[float] = []
        self._said = 0.0
        self.clicks = self.failed = 0
        self._failing = False

    @property
    def requests(self) -> int:
        return len(self._served.each)

    def fail(self) -> bool:
        """Whether this is the first of some requests without an answer."""
        self.failed += 1
        first, self._failing = not self._failing, True
        return first

    def add(self, ask: Ask, order: list[int], scores: list[float]) -> bool:
        """Whether it is time to say how it goes."""
        self._failing = False
        places = np.array(order, np.int64)
        self._served.add(ask, places)
        self._blind.add(ask, self._random.permutation(len(order)))
        self._scores += scores
        self._truth += ask.truth[places].tolist()
        due = ask.event_time - self._said >= EACH_S
        self._said = ask.event_time if due else self._said
        return due

    def line(self, seconds: float) -> str:
        last, failed = self._served.each[-1000:], f"  {self.failed} failed" if self.failed else ""
        return f"{seconds:6.0f} s  {self.requests:8} requests  regret {np.mean(last):.4f} (last {len(last)}){failed}"

    def result(self, early: int) -> Driven:
        each = self._served.each or [0.0]
        fifth = max(1, len(each) // 5)
        return Driven(
            requests=self.requests,
            failed=self.failed,
            clicks=self.clicks,
            early=early,
            regret=round(float(np.mean(each)), 4),
            regret_first=round(float(np.mean(each[:fifth])), 4),
            regret_last=round(float(np.mean(each[-fifth:])), 4),
            regret_random=round(float(np.mean(self._blind.each or [0.0])), 4),
            auc=round(auc(self._scores, self._truth), 4),
            ratio=round(float(np.sum(self._scores) / max(1e-12, np.sum(self._truth))), 4),
        )
