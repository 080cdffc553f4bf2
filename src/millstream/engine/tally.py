"""What a version has done: for the meter, so that every process renders the sum, and for the statistics of V2 clients,
who want whole nanoseconds of this process by phase and batch size."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable
from functools import partial
from zlib import crc32

from millstream.engine.quality import Quality
from millstream.meter import Meter
from millstream.types import Array, BatchStatistics, Ran, Spent, Statistics, TensorSpec

SIZES_MAX = 256
SHORT = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1)  # seconds of phases that a good batch does not feel
# Edges of what is kept of a guarded canary and of the live version beside it: times from 61 us to 64 s and scores
# of either sign from 1.5e-5 to 65536, in steps of 4.4 %. Fixed, so that processes sum.
TIMES = tuple(2.0 ** (step / 16) for step in range(-14 * 16, 6 * 16 + 1))
_UP = tuple(2.0 ** (step / 16) for step in range(-16 * 16, 16 * 16 + 1))
SCORES = (*(-edge for edge in reversed(_UP)), *_UP)
# What tells how alike requests of one caller are: callers fall into GROUPS by a hash of what decides their arm, and of
# each group WIDTH sums are kept: failed, answered by time (1 ms to 4 s, doubling), scored, and the scores' places
# (buckets of SCORES).
GROUPS = 32
WAITS = tuple(2.0**step for step in range(-10, 3))
WIDTH = len(WAITS) + 4
ARMS = ("live", "canary", "split", "explicit")


class Numbers:
    """The meter's slots of one loaded version, so that counting is an addition; `release` gives them back. `arms`: how
    many requests each arm's answers were, by the arm's name; `quality`: what the answers were like."""

    def __init__(
        self,
        meter: Meter,
        model: str,
        version: str,
        inputs: Iterable[TensorSpec] = (),
        outputs: Iterable[TensorSpec] = (),
    ) -> None:
        labels = {"model": model, "version": version}
        self._labels = [labels, *({**labels, "arm": arm} for arm in ARMS)]
        for claimed in self._labels:
            meter.claim(claimed)
        self._meter = meter
        with meter.together():
            self._make(meter, labels)
            self.quality = Quality(meter, labels, inputs, outputs)
            help = "Requests that got an answer or an error, by the arm that they fell to"
            self.arms = {
                f"split-{version}" if arm == "split" else arm: meter.counter(
                    "millstream_arm_requests_total", help, {**labels, "arm": arm}
                )
                for arm in ARMS
            }
            self.other = self.arms["explicit"]

    def release(self) -> None:
        """Once, when the version is no longer loaded."""
        for labels in self._labels:
            self._meter.release(labels)

    def _make(self, meter: Meter, labels: dict[str, str]) -> None:
        self.requests = meter.counter(
            "millstream_requests_total", "Requests that got an answer or an error from a version", labels
        )
        self.rows = meter.counter("millstream_rows_total", "Rows computed for requests", labels)
        self.failures = meter.counter("millstream_failures_total", "Requests that the model failed", labels)
        self.batches = meter.counter("millstream_batches_total", "Calls of the model for requests", labels)
        self.refused = meter.counter("millstream_busy_total", "Requests refused because the queue was full", labels)
        self.late = meter.counter("millstream_late_total", "Requests dropped because their time was over", labels)
        self.dropped = meter.counter("millstream_cancelled_total", "Requests whose caller went away", labels)
        self.copies = meter.counter("millstream_shadow_total", "Requests computed again as a shadow", labels)
        self.lost = meter.counter("millstream_shadow_lost_total", "Shadow requests dropped or failed", labels)
        self.compared = meter.counter(
            "millstream_shadow_compared_total", "Shadow requests compared with the live answer", labels
        )
        self.differs = meter.counter(
            "millstream_shadow_differs_total", "Compared shadow requests that differ from the live answer", labels
        )
        self.hits = meter.counter("millstream_cache_hits_total", "Requests answered from a version's cache", labels)
        self.padding = meter.counter(
            "millstream_padding_rows_total", "Rows' worth of computing spent on padding", labels
        )
        self.sessions = meter.gauge("millstream_sessions", "Sessions open on a version", labels)
        self.memory = meter.gauge("millstream_memory_bytes", "Memory that loading and warming a version took", labels)
        self.device = meter.gauge(
            "millstream_device_bytes", "GPU memory that loading and warming a version took", labels
        )
        self.waiting = meter.gauge("millstream_rows_waiting", "Rows that wait for a version", labels)
        self.queue = meter.histogram("millstream_queue_seconds", "From submit to the start of the batch", labels)
        self.compute = meter.histogram("millstream_compute_seconds", "Of a batch: join, model, split", labels)
        self.answer = meter.histogram("millstream_answer_seconds", "From submit to the end of the batch", labels)
        self.join = meter.histogram("millstream_join_seconds", "Of a batch: its rows into one array", labels, SHORT)
        self.split = meter.histogram("millstream_split_seconds", "Of a batch: its rows to their callers", labels, SHORT)


class Watched:
    """What one arm ("live" or "canary") of a guarded canary did by policy, which watch/canary/guard.py reads.

    A request's score is the first element of the first numeric output: one number a request, as rows of one request
    are not independent. NaN and infinity are no scores. `release` gives the slots back.
    """

    def __init__(self, meter: Meter, model: str, arm: str, outputs: Iterable[TensorSpec]) -> None:
        self._unnamed = itertools.count()
        labels = {"model": model, "arm": arm}
        meter.claim(labels)
        self.release = partial(meter.release, labels)  # once, when the route of this arm is no longer followed
        with meter.together():
            self._seconds = meter.histogram("_guard_seconds", "From submit to the answer", labels, TIMES)
            self._scores = meter.histogram("_guard_scores", "One a request", labels, SCORES)
            self._failures = meter.counter("_guard_failures", "Failed, late, refused, or given up", labels)
            cells = tuple(map(float, range(GROUPS * WIDTH - 1)))
            self._groups = meter.histogram("_guard_groups", "Sums by group of callers", labels, cells)
        self._output = next((spec.name for spec in outputs if spec.datatype not in ("BYTES", "BF16")), "")

    def failed(self, key: str) -> None:
        """A request got an error that is not its own mistake, or no answer while its caller waited. `key`: what decided
        its arm; none: nothing is known of its caller."""
        self._failures.add()
        self._groups.add(self._row(key))

    def answered(self, key: str, seconds: float, outputs: dict[str, Array]) -> None:
        """A request was answered after so long."""
        row = self._row(key)
        self._seconds.observe(seconds)
        self._groups.add(row + 1 + bisect_left(WAITS, seconds))
        array = outputs.get(self._output)
        if array is not None and array.size:
            score = float(array.item(0))
            if score - score == 0.0:
                place = bisect_left(SCORES, score)
                self._scores.add(place)
                self._groups.add(row + WIDTH - 2)
                self._groups.add(row + WIDTH - 1, place)

    def _row(self, key: str) -> int:
        group = crc32(key.encode("utf-8", "surrogatepass")) if key else next(self._unnamed)
        return group % GROUPS * WIDTH


class Tally:
    """Sums in seconds and counts; `statistics` turns them into what V2 clients read."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self.rows = self.batches = self.answered = self.failed = 0
        self.answered_s = self.failed_s = self.queue_s = 0.0
        self.copy_s = self.compute_s = self.split_s = 0.0  # of requests: each has the whole of its batch
        self.by_rows: dict[int, list[float]] = {}

    def ran(self, ran: Ran) -> None:
        """A call of the model has ended."""
        self.rows += ran.rows
        self.batches += 1
        self.copy_s += ran.copy_s * ran.requests
        self.compute_s += ran.compute_s * ran.requests
        self.split_s += ran.split_s * ran.requests
        sums = self.by_rows.get(ran.rows)
        if sums is None:
            if len(self.by_rows) >= SIZES_MAX:
                return
            sums = self.by_rows[ran.rows] = [0.0] * 4
        sums[0] += 1
        sums[1] += ran.copy_s
        sums[2] += ran.compute_s
        sums[3] += ran.split_s

    def statistics(self, model: str, version: str) -> Statistics:
        """The sums as of now."""
        done = self.answered + self.failed
        return Statistics(
            model=model,
            version=version,
            last_ms=int(self.last_s * 1e3),
            rows=self.rows,
            batches=self.batches,
            success=_spent(self.answered, self.answered_s),
            fail=_spent(self.failed, self.failed_s),
            queue=_spent(done, self.queue_s),
            copy=_spent(done, self.copy_s),
            compute=_spent(done, self.compute_s),
            split=_spent(done, self.split_s),
            by_rows=[
                BatchStatistics(rows, *(_spent(int(sums[0]), seconds) for seconds in sums[1:]))
                for rows, sums in sorted(self.by_rows.items())
            ],
        )


def _spent(count: int, seconds: float) -> Spent:
    return Spent(count, int(seconds * 1e9))
