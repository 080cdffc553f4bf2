"""What a version has done: for the meter, so that every process renders the sum, and for the statistics of V2 clients,
who want whole nanoseconds of this process by phase and batch size."""

from __future__ import annotations

from millstream.meter import Meter
from millstream.types import BatchStatistics, Ran, Spent, Statistics

SIZES_MAX = 256


class Numbers:
    """The meter's slots of one version, so that counting is an addition."""

    def __init__(self, meter: Meter, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        with meter.together():
            self._make(meter, labels)

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
        self.hits = meter.counter("millstream_cache_hits_total", "Requests answered from a version's cache", labels)
        self.padding = meter.counter(
            "millstream_padding_rows_total", "Rows' worth of computing spent on padding", labels
        )
        self.sessions = meter.gauge("millstream_sessions", "Sessions open on a version", labels)
        self.device = meter.gauge(
            "millstream_device_bytes", "GPU memory that loading and warming a version took", labels
        )
        self.waiting = meter.gauge("millstream_rows_waiting", "Rows that wait for a version", labels)
        self.queue = meter.histogram("millstream_queue_seconds", "From submit to the start of the batch", labels)
        self.compute = meter.histogram("millstream_compute_seconds", "Of a batch: join, model, split", labels)


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
