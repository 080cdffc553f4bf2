"""Traffic with known truth: people, items, and what they do, from probabilities that can be asked for.

Only known truth can prove a loop right: whether a model finds the probabilities, follows their drift, and waits long
enough for outcomes that come late.

Rules of the room:
- All randomness comes from the generator that is handed in: the same seed gives the same world and the same moments.
- What is shown is drawn uniformly from candidates drawn uniformly: a logged moment says nothing of any policy.
- A click is a coin with `sigmoid(BIAS + quality[item] + taste[user](t) . genres[item])`. With drift every taste turns
  from one direction to another and back, once in `drift_period_s`.
- In a list, an item is looked at with a probability that falls with its position, whatever it is, and clicked only if
  it was looked at (the position-based model: Craswell et al., "An experimental comparison of click position-bias
  models", WSDM 2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OCCUPATIONS = ("artist", "doctor", "engineer", "farmer", "lawyer", "student", "teacher", "writer")
GENRES = ("action", "animation", "comedy", "crime", "drama", "horror", "musical", "western")
BIAS = -0.6
BLOCK = 1024  # moments drawn at a time
_CROWDED = 10  # squared candidates over items: from there on, e^5 draws for a row of different ones
FALLS = 0.7  # how fast one looks less at what comes later


def looked_at(length: int) -> Floats:
    """How likely each place of a list is looked at, float64 [length]: place^-FALLS."""
    return np.asarray(np.arange(1, length + 1, dtype=np.float64) ** -FALLS, np.float64)


class Moment(msgspec.Struct, frozen=True):
    """`item`, one of `candidates`, was shown to `user` at `event_time` (unix seconds); `label`: whether it was clicked,
    which the service hears `delay_s` later; `probability`: the truth behind the coin. `told`: the label that the
    service hears, None for none at all; `cause`: what disturbed this moment (disturb.py), if anything did."""

    event_time: float
    user: str
    item: str
    candidates: tuple[str, ...]
    label: bool
    delay_s: float
    probability: float
    told: bool | None = None
    cause: str = ""


class Ask(NamedTuple):
    """Somebody wants `candidates` in order at `event_time` (unix seconds). `truth` float64 [n]: how likely each would
    be clicked if it were looked at."""

    event_time: float
    user: str
    candidates: tuple[str, ...]
    truth: Floats


class Reaction(NamedTuple):
    """What somebody did with an item that was looked at: clicked or not, which the service hears `delay_s` later."""

    item: str
    clicked: bool
    delay_s: float


class Simulator:
    """A world of `users` and `items` (rows with `id` and attributes) and its moments in order of time.

    Moments come `rate` a second on average (Poisson); delays are exponential with mean `delay_s`; tastes turn once in
    `drift_period_s` seconds, 0 means never.
    """

    def __init__(
        self,
        random: np.random.Generator,
        *,
        users: int = 1000,
        items: int = 1000,
        candidates: int = 10,
        start: float = 1_600_000_000.0,
        rate: float = 10.0,
        delay_s: float = 30.0,
        drift_period_s: float = 40_000.0,
    ) -> None:
        if not 1 <= candidates <= items // 2:
            raise ValueError(f"candidates must be 1 to half of the {items} items, got {candidates}")
        self._random, self._now = random, start
        self._start, self._rate, self._delay_s, self._period_s = start, rate, delay_s, drift_period_s
        self._candidates = candidates
        occupation = random.integers(0, len(OCCUPATIONS), users)
        self.users: list[dict[str, Any]] = [
            {"id": f"u{i}", "age": int(age), "gender": gender, "occupation": OCCUPATIONS[occupation[i]]}
            for i, (age, gender) in enumerate(
                zip(random.integers(18, 80, users), random.choice(["F", "M"], users).tolist(), strict=True)
            )
        ]
        # A taste is what the occupation shares and what is one's own: attributes explain a part, the id the rest.
        shared = random.normal(0, 1.0, (2, len(OCCUPATIONS), len(GENRES)))
        self._tastes: Floats = shared[:, occupation] + random.normal(0, 0.7, (2, users, len(GENRES)))
        marks = random.random((items, len(GENRES))) < 0.2
        marks[np.arange(items), random.integers(0, len(GENRES), items)] = True
        self._genres: Floats = marks / np.sqrt(marks.sum(axis=1, keepdims=True))
        self._quality: Floats = random.normal(0, 0.5, items)
        self.items: list[dict[str, Any]] = [
            {
                "id": f"i{i}",
                "title": f"Item {i}",
                "year": int(year),
                "genres": [genre for genre, has in zip(GENRES, marks[i], strict=True) if has],
            }
            for i, year in enumerate(random.integers(1960, 2020, items))
        ]

    def probability(self, user: str, items: Sequence[str], event_time: float) -> Floats:
        """The truth, float64 [len(items)]: how likely `user` clicks each of `items` if shown at `event_time`."""
        places = np.array([int(item[1:]) for item in items], np.int64)
        return self._truth(np.full(len(places), int(user[1:])), places, np.full(len(places), event_time))

    def moments(self, count: int) -> Iterator[Moment]:
        """The next `count` moments: time goes on where the last call left it."""
        for size in (min(BLOCK, count - done) for done in range(0, count, BLOCK)):
            yield from self._block(size)

    def asks(self, count: int) -> Iterator[Ask]:
        """The next `count` requests: time goes on where the last call left it."""
        for size in (min(BLOCK, count - done) for done in range(0, count, BLOCK)):
            times, users, candidates = self._drawn(size)
            everyone, wide = np.repeat(users, self._candidates), np.repeat(times, self._candidates)
            truth = self._truth(everyone, candidates.ravel(), wide).reshape(size, -1)
            for time, user, row, true in zip(times.tolist(), users.tolist(), candidates.tolist(), truth, strict=True):
                yield Ask(time, f"u{user}", tuple([f"i{i}" for i in row]), true)

    def react(self, ask: Ask, order: Sequence[int]) -> list[Reaction]:
        """What somebody does with the candidates in this order: those that were looked at. `order`: their places in
        `candidates`, the first first."""
        looked = self._random.random(len(order)) < looked_at(len(order))
        clicked = self._random.random(len(order)) < ask.truth[list(order)]
        delays = self._random.exponential(self._delay_s, len(order)).tolist()
        return [
            Reaction(ask.candidates[place], bool(clicked[at]), delays[at])
            for at, place in enumerate(order)
            if looked[at]
        ]

    def _drawn(self, size: int) -> tuple[Floats, Ints, Ints]:
        """Times, users and candidates [size, n] of the next requests."""
        times = self._now + self._random.exponential(1 / self._rate, size).cumsum()
        self._now = float(times[-1])
        users = self._random.integers(0, len(self.users), size)
        return times, users, self._distinct(size)

    def _block(self, size: int) -> list[Moment]:
        random = self._random
        times, users, candidates = self._drawn(size)
        shown = candidates[np.arange(size), random.integers(0, self._candidates, size)]
        truth = self._truth(users, shown, times)
        labels = random.random(size) < truth
        delays = random.exponential(self._delay_s, size)
        return [
            Moment(time, f"u{user}", f"i{item}", tuple([f"i{i}" for i in row]), label, delay, probability, label)
            for time, user, item, row, label, delay, probability in zip(
                times.tolist(), users.tolist(), shown.tolist(), candidates.tolist(), labels.tolist(), delays.tolist(),
                truth.tolist(), strict=True,
            )
        ]  # fmt: skip

    def _distinct(self, size: int) -> Ints:
        """Rows of different items, int64 [size, candidates]: drawn freely, and drawn again where two are the same; one
        by one where that would hardly ever do."""
        if self._candidates**2 > _CROWDED * len(self.items):
            drawn = [self._random.choice(len(self.items), self._candidates, replace=False) for _ in range(size)]
            return np.array(drawn, np.int64)
        rows = self._random.integers(0, len(self.items), (size, self._candidates))
        while True:
            ordered = np.sort(rows, axis=1)
            again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
            if not len(again):
                return rows
            rows[again] = self._random.integers(0, len(self.items), (len(again), self._candidates))

    def _truth(self, users: Ints, items: Ints, times: Floats) -> Floats:
        turned = (times - self._start) / self._period_s * 2 * np.pi if self._period_s else np.zeros(len(times))
        taste = np.cos(turned)[:, None] * self._tastes[0, users] + np.sin(turned)[:, None] * self._tastes[1, users]
        logit = BIAS + self._quality[items] + (taste * self._genres[items]).sum(axis=1)
        return np.asarray(1 / (1 + np.exp(-logit)), np.float64)
