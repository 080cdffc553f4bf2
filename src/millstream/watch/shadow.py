"""What a shadow version says beside the version that answered: how much, how often and on what they differ.

Rules of the room:
- Comparing runs in the shadows' thread and takes at most SHARE of its time; what comes too fast is skipped and counted.
- Work on one request is bounded: elements, texts and characters beyond a bound are not looked at.
- A sample of differing requests is kept for a person, bounded, in memory alone; text in it passes the redaction gate.
  Of recognisers of speech none is kept: that gate knows no spoken numbers.
- A comparison is of two versions, as this process saw them: another live version begins it anew.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections import OrderedDict, deque
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.engine.shadow import Pair
from millstream.engine.tally import TIMES
from millstream.guard.pii import pseudonym, redact
from millstream.meter import quantile
from millstream.models.speech.tensors import hears
from millstream.types import Array, Ran

RTOL, ATOL = 1e-3, 1e-4
SHARE = 0.1  # of the thread's time
COMPARISONS_MAX, OUTPUTS_MAX, SAMPLES_MAX = 64, 16, 20
FAILED_MAX = 1024
ELEMENTS_MAX, TEXTS_MAX, CHARS_MAX = 1 << 16, 32, 256
SHOWN_TENSORS, SHOWN_ELEMENTS, SHOWN_CHARS = 8, 64, 256
_UP = tuple(10.0 ** (step / 2) for step in range(-12, 13))
DELTAS = (*(-edge for edge in reversed(_UP)), *_UP)
"""Edges of the histogram of score deltas: half decades of either sign, from 1e-6 to 1e6."""

Floats = NDArray[np.float64]


class Numeric(msgspec.Struct, tag_field="kind", tag="numeric"):
    """A numeric output. `deltas`: shadow minus live in buckets of `DELTAS`; `differing` elements are those not close
    (1e-3 relative, 1e-4 absolute); `rank_correlation`: Spearman's, within a request of 3 rows or more, on average."""

    elements: int = 0
    differing: int = 0
    delta_mean_abs: float = 0.0
    delta_max_abs: float = 0.0
    rank_correlation: float | None = None
    deltas: list[int] = msgspec.field(default_factory=lambda: [0] * (len(DELTAS) + 1))
    ranked: int = 0


class Text(msgspec.Struct, tag_field="kind", tag="text"):
    """A text output. `character_error_rate`: edits to make the shadow's text of live's, by live's characters."""

    texts: int = 0
    exact: int = 0
    edits: int = 0
    characters: int = 0
    character_error_rate: float = 0.0


class Sample(msgspec.Struct):
    """A differing request, cut to what a person looks at: tensor -> {shape, data}."""

    request: str
    inputs: dict[str, object]
    live: dict[str, object]
    shadow: dict[str, object]


class Report(msgspec.Struct, kw_only=True):
    """One comparison. `compared` requests, of which so many were `differing`; `skipped` for want of time; `failed` in
    the shadow. Medians of a call, in ms."""

    model: str
    live: str
    shadow: str
    compared: int = 0
    differing: int = 0
    skipped: int = 0
    failed: int = 0
    failure: str = ""
    unlike: str = ""
    live_ms: float = 0.0
    shadow_ms: float = 0.0
    outputs: dict[str, Numeric | Text] = {}
    samples: list[Sample] = []


class Comparisons:
    """The comparisons of this process. Calling it with a pair says whether it differs; None: not compared."""

    def __init__(self, clock: Clock, randomness: random.Random | None = None) -> None:
        self._now, self._random = clock.monotonic, randomness or random.Random()
        self._known: OrderedDict[tuple[str, str], _Comparison] = OrderedDict()
        self._lock = threading.Lock()
        self._failed: deque[Pair] = deque(maxlen=FAILED_MAX)  # told without the lock: the loop must not wait for it
        self._resume = 0.0

    def __call__(self, pair: Pair) -> bool | None:
        """Compare one pair. Never raises: what cannot be compared is a failure of the comparison alone."""
        if pair.outputs is None:
            self._failed.append(pair)
            return None
        started = self._now()
        with self._lock:
            self._fail()
            comparison = self._of(pair)
            if started < self._resume:
                comparison.report.skipped += 1
                return None
            try:
                differs = comparison.add(pair, pair.outputs)
            except Exception as error:  # an output that is like no other must not end the shadow
                comparison.failed(f"the answers cannot be compared: {error!r}")
                return None
            ended = self._now()
            self._resume = ended + (ended - started) * (1 / SHARE - 1)
            return differs

    def reports(self, model: str) -> list[Report]:
        """What was compared of a model so far, a copy a shadow version."""
        with self._lock:
            self._fail()
            return [one.told() for (name, _), one in self._known.items() if name == model]

    def _fail(self) -> None:
        while self._failed:
            pair = self._failed.popleft()
            self._of(pair).failed(pair.why)

    def _of(self, pair: Pair) -> _Comparison:
        live, version = (name.partition("@")[0] for name in (pair.live.version, pair.version))
        key = pair.live.model, version
        found = self._known.get(key)
        if found is None or found.report.live != live:
            self._known.pop(key, None)
            found = self._known[key] = _Comparison(pair.live.model, live, version, self._random)
            if len(self._known) > COMPARISONS_MAX:
                self._known.popitem(last=False)
        return found


class _Comparison:
    def __init__(self, model: str, live: str, shadow: str, randomness: random.Random) -> None:
        self.report = Report(model=model, live=live, shadow=shadow, outputs={}, samples=[])
        self._times = [0] * (len(TIMES) + 1), [0] * (len(TIMES) + 1)
        self._random = randomness

    def failed(self, why: str) -> None:
        self.report.failed += 1
        self.report.failure = redact(why[:500])

    def add(self, pair: Pair, shadow: dict[str, Array]) -> bool:
        report, live = self.report, pair.live.outputs
        differs = self._unlike(live, shadow)
        for name in [name for name in live if name in shadow][:OUTPUTS_MAX]:
            differs |= self._output(name, live[name], shadow[name])
        for ran, times in zip((pair.live.ran, pair.ran), self._times, strict=True):
            if ran is not None:
                times[int(np.searchsorted(TIMES, _seconds(ran)))] += 1
        report.compared += 1
        if differs:
            report.differing += 1
            if not hears(pair.request.inputs, live):
                self._keep(pair, shadow)
        return differs

    def told(self) -> Report:
        """A copy of the report as it is now."""
        made = copy.deepcopy(self.report)
        made.live_ms, made.shadow_ms = (quantile(TIMES, times, 0.5) * 1e3 for times in self._times)
        return made

    def _unlike(self, live: dict[str, Array], shadow: dict[str, Array]) -> bool:
        only = [f"only {who} has output {min(names)!r}" for who, names in (
            ("live", live.keys() - shadow.keys()), ("the shadow", shadow.keys() - live.keys())
        ) if names]  # fmt: skip
        if only:
            self.report.unlike = "; ".join(only)
        return bool(only)

    def _output(self, name: str, live: Array, shadow: Array) -> bool:
        """Compare one output; whether it differs."""
        if live.shape != shadow.shape or live.dtype.hasobject != shadow.dtype.hasobject:
            self.report.unlike = (
                f"output {name!r} is {live.dtype} {list(live.shape)}, and {shadow.dtype} {list(shadow.shape)} of the "
                "shadow"
            )
            return True
        if not live.size:
            return False
        kept = self.report.outputs.setdefault(name, Text() if live.dtype.hasobject else Numeric())
        if isinstance(kept, Text):
            return _texts(kept, live, shadow)
        return _numbers(kept, live, shadow)

    def _keep(self, pair: Pair, shadow: dict[str, Array]) -> None:
        """Keep every differing request with the same chance, so many of them."""
        samples, place = self.report.samples, self.report.differing - 1
        if place >= SAMPLES_MAX:
            place = self._random.randrange(self.report.differing)
            if place >= SAMPLES_MAX:
                return
        sample = Sample(
            pseudonym(pair.request.id[:SHOWN_CHARS]),
            _shown(pair.request.inputs),
            _shown(pair.live.outputs),
            _shown(shadow),
        )
        samples[place : place + 1] = [sample]


def _seconds(ran: Ran) -> float:
    return ran.copy_s + ran.compute_s + ran.split_s


def _numbers(kept: Numeric, live: Array, shadow: Array) -> bool:
    rows = len(live) if live.ndim else 1
    one, other = (array.ravel()[:ELEMENTS_MAX].astype(np.float64) for array in (live, shadow))
    same = np.isclose(one, other, rtol=RTOL, atol=ATOL, equal_nan=True)
    delta = (other - one)[np.isfinite(one) & np.isfinite(other)]
    if delta.size:
        size = np.abs(delta)
        seen = sum(kept.deltas)
        kept.delta_mean_abs += (float(size.sum()) - kept.delta_mean_abs * delta.size) / (seen + delta.size)
        kept.delta_max_abs = max(kept.delta_max_abs, float(size.max()))
        counts = np.bincount(np.searchsorted(DELTAS, delta), minlength=len(DELTAS) + 1)
        kept.deltas = [a + int(b) for a, b in zip(kept.deltas, counts, strict=True)]
    kept.elements += one.size
    kept.differing += int(one.size - same.sum())
    if 3 <= rows <= live.size <= ELEMENTS_MAX:
        correlation = spearman(one.reshape(rows, -1)[:, 0], other.reshape(rows, -1)[:, 0])
        if correlation is not None:
            kept.ranked += 1
            before = kept.rank_correlation or 0.0
            kept.rank_correlation = before + (correlation - before) / kept.ranked
    return not bool(same.all())


def _texts(kept: Text, live: Array, shadow: Array) -> bool:
    differs = False
    pairs = zip(live.ravel()[:TEXTS_MAX].tolist(), shadow.ravel()[:TEXTS_MAX].tolist(), strict=True)
    for one, other in ((_text(a), _text(b)) for a, b in pairs):
        kept.texts += 1
        kept.exact += one == other
        differs |= one != other
        one, other = one[:CHARS_MAX], other[:CHARS_MAX]
        if one != other:
            kept.edits += edits(one, other)
            time.sleep(0)  # the loop may have the interpreter: these are long loops in Python
        kept.characters += len(one)
    kept.character_error_rate = kept.edits / max(1, kept.characters)
    return differs


def spearman(one: Floats, other: Floats) -> float | None:
    """Spearman's rank correlation; ties share their mean rank. None where one side is all the same, or not finite."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else None


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def edits(one: str, other: str) -> int:
    """Levenshtein's distance, a column at a time in the bits of an integer (Myers 1999, as of Hyyro 2003)."""
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for at, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << at
    whole, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, distance = whole, 0, len(one)
    for letter in other:
        match = places.get(letter, 0)
        zero = (((match & up) + up) ^ up) | match | down
        rise, fall = down | ~(zero | up) & whole, up & zero
        if rise & last:
            distance += 1
        elif fall & last:
            distance -= 1
        rise, fall = (rise << 1 | 1) & whole, fall << 1 & whole
        up, down = (fall | ~(zero | rise)) & whole, rise & zero
    return distance


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(tensors: dict[str, Array]) -> dict[str, object]:
    """Tensors as a person looks at them: cut, and text without what is personal."""
    return {
        name: {"shape": list(array.shape), "data": _cut(array)} for name, array in list(tensors.items())[:SHOWN_TENSORS]
    }


def _cut(array: Array) -> list[object]:
    few: list[object] = array.ravel()[:SHOWN_ELEMENTS].tolist()
    if array.dtype.hasobject:  # redacted with a margin: a cut must not leave half a number that nobody recognises
        return [redact(_text(one)[: 2 * SHOWN_CHARS])[:SHOWN_CHARS] for one in few]
    return few
