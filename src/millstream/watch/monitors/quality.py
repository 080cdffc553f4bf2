"""The monitor of what answers are like, without labels: how far scores and confidence have moved, and from what.

Rules of the room:
- It rests on counts of answers (engine/quality.py): their number, sum and sum of squares, of the role's history, so
  that it knows after a restart what it knew before; and on the histogram of scores, of which it keeps 70 minutes.
- A shift is in standard deviations of what it is compared with, and what it surely is at least: the part that chance
  explains is taken off, zero when chance explains it all. Chance is what the steps of both windows differ by, as
  requests of one caller, or of one minute, are not independent; at least that of independent requests.
- Each version, all servers together, stands beside itself (`against`): `hour`, the hour before; `day`, an hour around
  this time of the day before; `start`, its first hour of answers; `others`, what other versions of the model answered
  in the last hour. Each server stands beside the same version on the others: `peers`.
- Where there are fewer than LEAST answers on one side there is no reading.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, cast

import numpy as np

from millstream.meter import Series
from millstream.watch.history import Floats, History
from millstream.watch.monitor import Logged, Sample
from millstream.watch.reading import Key

SURE: Final = 4.0
"""Standard errors that are taken off as chance: of a week's looks at ten versions, less than one is beyond it."""
LEAST: Final = 200
NOW_S: Final = 600.0
QUICK_S: Final = 120.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
BINS: Final = 10
MINUTES: Final = 70
KEPT_MAX: Final = 256
"""Versions whose histograms are kept; of more, the one that answered longest ago goes."""
_HISTOGRAM = "millstream_quality_score"
_PARTS = {
    "score": ("scores", ("score_above", "score_below"), "score_squares"),
    "confidence": ("confident", ("confidence",), "confidence_squares"),
}
Version = tuple[str, str]  # model, version


class Moments(NamedTuple):
    """Of answers: how many, mean and standard deviation of a number of theirs, and the standard error of the mean."""

    n: float
    mean: float
    sd: float
    error: float


def moments(steps: Floats) -> Moments:
    """Of [3, steps]: number, sum and sum of squares in each. The error is the larger of that of independent requests,
    and that of a ratio of sums over steps (Cochran, Sampling Techniques, 1977, 6.3)."""
    counts, sums, squares = steps
    n = float(counts.sum())
    if n <= 0.0:
        return Moments(0.0, 0.0, 0.0, 0.0)
    mean = float(sums.sum()) / n
    sd = float(np.sqrt(max(0.0, float(squares.sum()) / n - mean * mean)))
    error = sd / np.sqrt(n)
    filled = int(np.count_nonzero(counts))
    if filled > 1:
        apart = sums - mean * counts
        error = max(error, float(np.sqrt((apart * apart).sum() * filled / (filled - 1))) / n)
    return Moments(n, mean, sd, float(error))


def shift(now: Moments, before: Moments) -> float | None:
    """How many standard deviations of `before` the mean surely moved; None: too few answers."""
    if min(now.n, before.n) < LEAST:
        return None
    moved = abs(now.mean - before.mean)
    sure = moved - SURE * float(np.hypot(now.error, before.error))
    if sure <= 0.0:
        return 0.0
    spread = before.sd if before.sd > 1e-9 * max(1.0, abs(before.mean)) else now.sd
    return min(sure / spread, 1000.0) if spread > 0.0 else 1000.0


def psi(now: Floats, before: Floats, design: float = 1.0) -> float | None:
    """The population stability index of two histograms of the same buckets, in at most BINS bins of about equal parts
    of `before`, less what chance explains (its mean and SURE standard deviations, where the two are the same: Yurdakul,
    Statistical Properties of Population Stability Index, 2018). `design`: how much more the parts of a histogram vary
    than those of independent answers. None: too few."""
    n, m = float(now.sum()), float(before.sum())
    if min(n, m) < LEAST:
        return None
    cuts = np.searchsorted(np.cumsum(before), np.arange(1, BINS) * m / BINS)
    starts = np.unique(np.concatenate([[0], cuts + 1]))
    starts = starts[starts < len(before)]
    ours, theirs = np.add.reduceat(now, starts), np.add.reduceat(before, starts)
    there = (ours > 0) | (theirs > 0)
    ours, theirs = ours[there], theirs[there]
    p, q = (ours + 0.5) / (n + 0.5 * len(ours)), (theirs + 0.5) / (m + 0.5 * len(theirs))
    found = float(((p - q) * np.log(p / q)).sum())
    free = len(ours) - 1
    chance = (1.0 / n + 1.0 / m) * (free + SURE * np.sqrt(2.0 * free))
    return max(0.0, found - float(chance) * max(1.0, design))


class Quality:
    """The monitor. `history`: where the role keeps what was read; without any answers in it there are no readings."""

    name = "quality"
    topics: frozenset[str] = frozenset()
    metrics = frozenset({_HISTOGRAM})

    def __init__(self, history: History) -> None:
        self._history = history
        self._last: dict[tuple[str, Version], tuple[float, Floats]] = {}  # when it was there, what it had counted
        self._minutes: OrderedDict[Version, deque[tuple[int, Floats]]] = OrderedDict()
        self._starts: dict[tuple[str, Version], Moments] = {}
        self._begun = False

    def observe(self, seen: Sample | Logged) -> None:
        """Take in the histograms of one process."""
        assert isinstance(seen, Sample)
        for series in seen.series:
            if series.name == _HISTOGRAM:
                self._take(seen.at, seen.process, series)

    def _take(self, at: float, process: str, series: Series) -> None:
        version = series.labels.get("model", ""), series.labels.get("version", "")
        counts = np.array(series.values[:-1])
        if not (np.isfinite(counts) & (counts >= 0.0)).all():
            return
        _, before = self._last.get((process, version), (0.0, None))
        self._last[process, version] = at, counts
        if before is None:
            if not self._begun:  # nobody knows when these were counted
                return
            came = counts
        else:
            came = counts - before if len(before) == len(counts) and (counts >= before).all() else counts
        if not came.any():
            return
        minutes = self._minutes.setdefault(version, deque())
        self._minutes.move_to_end(version)
        number = max(int(at // 60.0), minutes[-1][0] if minutes else 0)
        if minutes and minutes[-1][0] == number and len(minutes[-1][1]) == len(came):
            minutes[-1] = number, minutes[-1][1] + came
        else:
            minutes.append((number, came))
        while len(minutes) > MINUTES:
            minutes.popleft()
        while len(self._minutes) > KEPT_MAX:
            self._minutes.popitem(last=False)

    def _forget(self, now: float) -> None:
        """What is gone for an hour: versions that are no longer loaded, processes that are no more."""
        for place in [place for place, (at, _) in self._last.items() if at < now - HOUR_S]:
            del self._last[place]
        for version in [one for one, minutes in self._minutes.items() if minutes[-1][0] < now // 60.0 - MINUTES]:
            del self._minutes[version]

    def readings(self, now: float) -> Mapping[Key, float]:
        """Levels of every version that answered lately."""
        self._begun = True
        self._forget(now)
        found: dict[Key, float] = {}
        designs: dict[Version, float] = {}
        for of in _PARTS:
            self._shifts(of, found, designs)
        for version, minutes in self._minutes.items():
            buckets = len(minutes[-1][1])
            parts = [np.zeros(buckets), np.zeros(buckets)]
            for number, counts in minutes:
                ago = int(now // 60.0) - number
                if ago < MINUTES and len(counts) == buckets:
                    parts[ago >= NOW_S / 60.0] += counts
            if (value := psi(parts[0], parts[1], design=designs.get(version, 1.0))) is not None:
                found[_key("score_psi", version)] = value
        return found

    def _shifts(self, of: str, found: dict[Key, float], designs: dict[Version, float]) -> None:
        table = _table(self._history, of)
        if not table.servers:
            return
        windows = {
            "now": table.window(NOW_S),
            "hour": table.window(HOUR_S, NOW_S),
            "last": table.window(HOUR_S),
            "day": table.window(HOUR_S, DAY_S - HOUR_S / 2 + NOW_S / 2),
            "quick": table.window(QUICK_S),
        }
        for version in table.servers:
            mine = table.of(windows["now"], [version])
            ours = moments(mine)
            if ours.n < LEAST:
                continue
            if of == "score":
                found[_key("score_mean", version)], found[_key("score_sd", version)] = ours.mean, ours.sd
                plain = ours.sd / np.sqrt(ours.n)
                designs[version] = (ours.error / plain) ** 2 if plain > 0.0 else 1.0
            others = [one for one in table.servers if one[0] == version[0] and one != version]
            beside = {
                "hour": moments(table.of(windows["hour"], [version])),
                "day": moments(table.of(windows["day"], [version])),
                "start": self._start(of, version, table),
                "others": moments(table.of(windows["last"], others)),
            }
            for against, theirs in beside.items():
                if (value := shift(ours, theirs)) is not None:
                    found[_key(f"{of}_shift", version, against=against)] = value
            for server, rest in table.apart(windows["quick"], version):
                if (value := shift(moments(rest[0]), moments(rest[1]))) is not None:
                    found[_key(f"{of}_shift", version, against="peers", server=server)] = value

    def _start(self, of: str, version: Version, table: _Table) -> Moments:
        """The first hour of a version, once it is over."""
        place = of, version
        if (known := self._starts.get(place)) is None:
            known = table.first_hour(version)
            if known.n < LEAST:
                return Moments(0.0, 0.0, 0.0, 0.0)
            if len(self._starts) >= 2 * KEPT_MAX:
                self._starts.clear()
            self._starts[place] = known
        return known


class _Table:
    """Number, sum and sum of squares of one kind, by version and server, out of a history."""

    def __init__(self, history: History, of: str) -> None:
        self._history = history
        count, sums, squares = _PARTS[of]
        found: list[Key] = []
        self._part: list[tuple[int, float]] = []  # which of the three a key adds to, and its sign
        self.servers: dict[Version, dict[str, list[int]]] = {}  # places of its keys
        for name, part, sign in (
            (count, 0, 1.0), (sums[0], 1, 1.0), *((one, 1, -1.0) for one in sums[1:]), (squares, 2, 1.0),
        ):  # fmt: skip
            for key in history.keys(name):
                version = key.get("model"), key.get("version")
                self.servers.setdefault(version, {}).setdefault(key.get("server"), []).append(len(found))
                found.append(key)
                self._part.append((part, sign))
        self._keys = tuple(found)

    def window(self, seconds: float, ago: float = 0.0) -> Floats:
        """[keys, steps]"""
        return self._history.steps(self._keys, seconds, ago)

    def of(self, window: Floats, versions: Sequence[Version]) -> Floats:
        """[3, steps] of these versions on all servers."""
        return self._sum(window, (p for one in versions for places in self.servers[one].values() for p in places))

    def apart(self, window: Floats, version: Version) -> list[tuple[str, tuple[Floats, Floats]]]:
        """Of each server that has two peers: its [3, steps], and those of the peer whose mean is the median of theirs;
        of two in the middle both."""
        servers = self.servers[version]
        own = {server: self._sum(window, places) for server, places in servers.items()}
        own = {server: sums for server, sums in own.items() if sums[0].sum() >= LEAST}
        if len(own) < 3:
            return []
        order = sorted(own, key=lambda server: own[server][1].sum() / own[server][0].sum())
        found = []
        for server, mine in own.items():
            peers = [own[other] for other in order if other != server]
            middle = peers[(len(peers) - 1) // 2 : len(peers) // 2 + 1]
            found.append((server, (mine, np.sum(middle, axis=0))))
        return found

    def first_hour(self, version: Version) -> Moments:
        """Of the first whole step of an hour in which it answered, and the one before."""
        keys = [self._keys[p] for places in self.servers[version].values() for p in places]
        steps = self._history.steps(keys, 31 * DAY_S)
        places = [p for places in self.servers[version].values() for p in places]
        total = np.zeros((3, steps.shape[1]))
        for row, place in enumerate(places):
            part, sign = self._part[place]
            total[part] += sign * steps[row]
        there = np.flatnonzero(total[0])
        if not len(there) or steps.shape[1] <= there[0] + 2:
            return Moments(0.0, 0.0, 0.0, 0.0)
        return moments(total[:, there[0] : there[0] + 2])

    def _sum(self, window: Floats, places: Iterable[int]) -> Floats:
        total = np.zeros((3, window.shape[1]))
        for place in places:
            part, sign = self._part[place]
            total[part] += sign * window[place]
        return total


def _table(history: History, of: str) -> _Table:
    """The table of this kind, made anew when keys come or go."""
    memo = cast("dict[object, _Table]", history.memo)
    if (found := memo.get((_Table, of))) is None:
        found = memo[_Table, of] = _Table(history, of)
    return found


def _key(quantity: str, version: Version, **more: str) -> Key:
    return Key.of(quantity, {"model": version[0], "version": version[1], **more})
