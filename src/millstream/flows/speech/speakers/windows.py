"""Which pieces of audio are listened to, for their voice and for turns, and where within a segment one speaker gives
way to another.

Rules of the room:
- Windows lie at fixed distances from the first sample of a segment's speech, and its last one ends with it: which there
  are depends on where speech begins and ends, never on how the audio arrived.
- A window for a voice is 1.6 s: of a shorter one it is told with several times the errors, a longer one hears two
  people. One for turns is up to 10 s, what the model hears at once.
- Where somebody gives way to another is said by turns where they are told, and by voices where those say nothing: turns
  know the moment, and nobody beyond their window; voices know who it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.settings import RATE
from millstream.flows.speech.speakers.cluster import Matrix, Scale, group
from millstream.models.speech import turns
from millstream.models.speech.turns import Span, Spoken
from millstream.spoken import Word

WINDOW: Final = int(1.6 * RATE)
HOP: Final = WINDOW // 2
LEAST: Final = int(0.4 * RATE)
"""Samples: less speech says nothing of a voice."""
LOOK: Final = turns.WINDOW
LOOK_HOP: Final = LOOK // 2
OVERLAP: Final = int(0.1 * RATE)
"""Samples: where two speak at once for less, it may be how one gives way to the other."""
TURN: Final = RATE
"""Samples: who says less between others is not told apart from them."""
SHARED: Final = 0.25
"""What the likeness of two windows counts that share audio, and are alike for that already."""
HEARD_MAX: Final = 10.0
"""What a voice heard before counts at most, in windows."""
SWITCH: Final = 0.2
"""What a change of the voice costs, as a share of how alike one is to itself."""


Voice = tuple[NDArray[np.float64], float]
"""The mean voice of somebody, and seconds of speech that it is the mean of."""


class Voiced(NamedTuple):
    """A window `start` .. `end` of the session, in samples, and its `voice`: float32 [d] of length one."""

    start: int
    end: int
    voice: NDArray[np.float32]


class Look(NamedTuple):
    """What was heard of turns in a window `start` .. `end`, all in samples of the session; see turns.Spoken."""

    start: int
    end: int
    overlaps: list[Span]
    alone: list[tuple[Span, int]]


class Run(NamedTuple):
    """Words `first` .. `last` (not with it) are of one voice, which speaks from sample `start` to `end`."""

    first: int
    last: int
    start: int
    end: int


class Windows:
    """The windows of the segment that is open, each given once: `size` samples, `hop` from each to the next. Up to
    `rest` at the end of the speech may lie in none, and less than `LEAST` has none."""

    def __init__(self, size: int = WINDOW, hop: int = HOP, rest: int = HOP // 2) -> None:
        self._size, self._hop, self._rest = size, hop, rest
        self._start, self._next = -1, 0

    def wanted(self, start: int, upto: int, closed: bool) -> list[Span]:
        """Those of speech that began at `start` and is known up to `upto`, where it ends if `closed`."""
        if start != self._start:
            self._start, self._next = start, start
        found = []
        while self._next + self._size <= upto:
            found.append((self._next, self._next + self._size))
            self._next += self._hop
        if closed:
            while self._next > start and self._next - self._hop + self._size > upto:  # speech was cut before them
                self._next -= self._hop
            heard = self._next - self._hop + self._size if self._next > start else start
            if upto - heard > (self._rest if heard > start else LEAST - 1):
                found.append((max(start, upto - self._size), upto))
        return found


def looks() -> Windows:
    """Those that are listened to for turns."""
    return Windows(LOOK, LOOK_HOP, OVERLAP)


def looked(windows: Iterable[Span], heard: Iterable[Spoken]) -> list[Look]:
    """What was heard in windows of the session, which are in order."""
    found = []
    for (start, end), spoken in zip(windows, heard, strict=True):
        overlaps = [(start + a, start + b) for a, b in spoken.overlaps]
        found.append(Look(start, end, overlaps, [((start + a, start + b), who) for (a, b), who in spoken.alone]))
    return found


def overlaps(seen: Iterable[Look]) -> list[Span]:
    """Where two speak at once: in order, none touch."""
    return united(span for look in seen for span in look.overlaps)


def switches(seen: Sequence[Look]) -> list[int]:
    """Where one speaker gives way to another for a second or more. Windows lie over each other by half: a moment is
    looked at in the one whose middle is nearer, and near the border in both."""
    found = set()
    for number, look in enumerate(seen):
        first = (look.start + seen[number - 1].end - TURN) // 2 if number else look.start
        last = (look.end + seen[number + 1].start + TURN) // 2 if number + 1 < len(seen) else look.end
        edges = [look.start, *((a[1] + b[0]) // 2 for (a, _), (b, _) in itertools.pairwise(look.alone)), look.end]
        parts = [(*edge, who) for edge, (_, who) in zip(itertools.pairwise(edges), look.alone, strict=False)]
        found |= {start for start, _, _ in _long(parts)[1:] if first <= start < last} if parts else set()
    apart: list[int] = []
    for at in sorted(found):
        apart += [at] if not apart or at - apart[-1] > TURN else []
    return apart


def united(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, none of which touch, over all that is in any of these."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def within(spans: Iterable[Span], start: int, end: int) -> int:
    """Samples of the spans between two samples; they are `united`."""
    return sum(max(0, min(b, end) - max(a, start)) for a, b in spans)


def mean_within(voices: Sequence[Voiced], start: int, end: int) -> tuple[NDArray[np.float32], float, float, float]:
    """What a stretch sounds like, by the windows whose middle lies in it: the mean of their voices (shorter than one
    the more they differ), seconds that they cover, how alike two are that share no audio, and how many such pairs say
    so. A window counts by how much of it lies within. None: seconds are 0."""
    inside = [v for v in voices if start <= (v.start + v.end) // 2 < end]
    if not inside:
        return np.zeros(0, np.float32), 0.0, 0.0, 0.0
    share = np.array([(min(v.end, end) - max(v.start, start)) / (v.end - v.start) for v in inside])
    matrix = np.stack([v.voice for v in inside]).astype(np.float64)
    weight = share**2
    mean = weight @ matrix / weight.sum()
    covered = (min(end, inside[-1].end) - max(start, inside[0].start)) / RATE
    apart = np.array([[b.start >= a.end for b in inside] for a in inside]) & (share >= 0.9) & (share >= 0.9)[:, None]
    alike = (matrix @ matrix.T)[apart]
    return mean.astype(np.float32), covered, float(alike.mean()) if alike.size else 0.0, float(alike.size)


def changes(voices: Sequence[Voiced], start: int, end: int, of: Scale, heard: Sequence[Voice] = ()) -> list[int]:
    """The samples between `start` and `end` of a segment at which the voice changes for a second or more. Its windows
    are grouped by voice, with those `heard` before; then each goes to the group that it and those beside it are most
    like (Viterbi), as to change twice for a window must pay."""
    count = len(voices)
    if count < 2:
        return []
    alike, pairs = _likeness(voices, of, heard)
    labels = np.array(_labels(alike, pairs, of, len(heard)))
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    members = [at for at in members if len(at) > 1 and at[-1] >= len(heard)]
    if len(members) < 2:
        return []
    alike, pairs = alike[len(heard) :], pairs[len(heard) :]
    like = np.stack([(alike[:, at] * pairs[:, at]).sum(1) / pairs[:, at].sum(1) for at in members], axis=1)
    path = _smooth(like, SWITCH * of.same)
    middles = [(v.start + v.end) // 2 for v in voices]
    edges = [start, *((middles[k - 1] + middles[k]) // 2 for k in range(1, count)), end]
    parts = [(edges[k], edges[k + 1], who) for k, who in enumerate(path)]
    return [part[0] for part in _long(parts)[1:]]


def _long(parts: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(start, end, who) in a row with what is one's put together, and what is shorter than a turn given to the longer
    neighbour, the shortest first."""
    while True:
        joined = parts[:1]
        for start, end, who in parts[1:]:
            if who == joined[-1][2]:
                joined[-1] = (joined[-1][0], end, who)
            else:
                joined.append((start, end, who))
        size, at = min((end - start, k) for k, (start, end, _) in enumerate(joined))
        if size >= TURN or len(joined) == 1:
            return joined
        beside = [k for k in (at - 1, at + 1) if 0 <= k < len(joined)]
        to = max(beside, key=lambda k: joined[k][1] - joined[k][0])
        parts = [(a, b, joined[to][2] if k == at else who) for k, (a, b, who) in enumerate(joined)]


def grouped(voices: Sequence[Voiced], of: Scale) -> list[int]:
    """Which windows are of one voice: a label of each, from 0 on."""
    return _labels(*_likeness(voices, of, ()), of, 0)


def _labels(alike: Matrix, pairs: Matrix, of: Scale, heard: int) -> list[int]:
    seconds = np.maximum(np.diag(pairs) ** 0.5, 1.0) * HOP / RATE
    return group(alike, pairs, seconds, of, [f"{k}" if k < heard else "" for k in range(len(pairs))])


def _likeness(voices: Sequence[Voiced], of: Scale, heard: Sequence[Voice]) -> tuple[Matrix, Matrix]:
    """Of each to each, the voices heard before and then the windows, and what it counts: a voice as many windows as it
    spoke, up to `HEARD_MAX`."""
    matrix = np.stack([*(voice for voice, _ in heard), *(v.voice for v in voices)]).astype(np.float64)
    count = np.array([min(max(seconds * RATE / HOP, 1.0), HEARD_MAX) for _, seconds in heard] + [1.0] * len(voices))
    pairs, first = np.outer(count, count), len(heard)
    for i, one in enumerate(voices, first):
        for j, other in enumerate(voices, first):
            if one.start < other.end and other.start < one.end:
                pairs[i, j] = SHARED * (i != j)
    alike = matrix @ matrix.T
    alike[np.arange(first), np.arange(first)] = of.same
    return alike, pairs


def _smooth(like: NDArray[np.float64], switch: float) -> list[int]:
    """The path through `like` [windows, groups] with the largest sum, when each change costs `switch`."""
    total, back = like[0], []
    for row in like[1:]:
        best = int(total.argmax())
        back.append(np.where(total >= total[best] - switch, np.arange(len(total)), best))
        total = np.maximum(total, total[best] - switch) + row
    path = [int(total.argmax())]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return path[::-1]


def split(
    words: Sequence[Word], voices: Sequence[Voiced], start: int, end: int, of: Scale, heard: Sequence[Voice] = (),
    seen: Sequence[Look] = (),
) -> list[Run]:  # fmt: skip
    """The words of a segment by who says them, one of those `heard` before or another: each change of speaker falls
    between two words, where the pause is long and near. Less than a second of speech stays with its neighbour."""
    runs: list[Run] = []
    first, begin = 0, start
    turned = switches(seen)
    voiced = [at for at in changes(voices, start, end, of, heard) if all(abs(at - turn) > TURN for turn in turned)]
    for change in sorted(turned + voiced):
        cut = _gap(words, change, first)
        if cut is None:
            continue
        at = int((words[cut - 1].end + words[cut].start) / 2 * RATE)
        if at - begin >= TURN and end - at >= TURN:
            runs.append(Run(first, cut, begin, at))
            first, begin = cut, at
    return [*runs, Run(first, len(words), begin, end)]


def _gap(words: Sequence[Word], change: int, first: int) -> int | None:
    """The word before which to cut: a pause that lasts makes up for so much distance."""
    found, cost = None, float("inf")
    for k in range(max(1, first + 1), len(words)):
        gap = max(0.0, words[k].start - words[k - 1].end)
        away = abs((words[k].start + words[k - 1].end) / 2 - change / RATE) - gap
        if away < cost:
            found, cost = k, away
    return found
