"""A goal instead of knobs: keep 99 of 100 answers under so many milliseconds.

Rules of the room:
- What a call costs is learnt from the calls themselves: a fixed part and a part a row, older calls fading.
- Two means, both stated: batches small enough that a call takes at most half of the goal, and refusing at once what
  would wait too long. Waiting for more rows is no third: on the machines measured it only costs time.
- The bound on waiting is corrected by what was reached: additive increase, multiplicative decrease (Chiu, Jain 1989).
"""

from __future__ import annotations

FADE = 0.98
KEPT = 2048
MARGIN_MIN, MARGIN_STEP, MARGIN_CUT = 0.05, 0.02, 0.8
SHARE = 0.5


class Goal:
    """Of one version with `instances`: `rows_max` a batch, and `takes(rows)` before a request waits."""

    def __init__(self, p99_s: float, rows_max: int, instances: int) -> None:
        self.p99_s, self.rows_max = p99_s, rows_max
        self._most, self._instances = rows_max, instances
        self._margin = 0.7  # the part of the goal that a request may be expected to take
        self._sums = [0.0] * 5  # of weight, rows, seconds, rows squared, rows x seconds
        self._fixed = self._row = 0.0
        self._latencies: list[float] = []

    def ran(self, rows: int, wall_s: float) -> None:
        """A call has ended: learn what a call costs."""
        if rows > self._most:
            return  # computed in pieces: not one call
        for at, value in enumerate((1.0, rows, wall_s, rows * rows, rows * wall_s)):
            self._sums[at] = FADE * self._sums[at] + value
        weight, x, y, xx, xy = self._sums
        spread = weight * xx - x * x
        slope = (weight * xy - x * y) / spread if spread > 1e-9 * weight * xx else 0.0
        self._row = min(max(slope, 0.0), y / max(x, 1e-12))
        self._fixed = max(0.0, (y - self._row * x) / weight)
        if self._row > 0:
            self.rows_max = int(min(max((SHARE * self.p99_s - self._fixed) / self._row, 1), self._most))

    def expected_s(self, rows: int) -> float:
        """Until a request is answered that would be the last of `rows` waiting: the calls before it, and its own."""
        calls = -(-rows // self.rows_max)
        last = self._fixed + self._row * min(rows, self.rows_max)
        # One call may have just begun; the others before it are shared by the instances.
        whole = self._fixed + self._row * self.rows_max
        return last + whole + max(0, calls - 1) * whole / self._instances

    def takes(self, rows_waiting: int, rows: int) -> bool:
        """Whether a request may wait behind `rows_waiting`. When nothing waits it may: somebody has to be first."""
        return not rows_waiting or self.expected_s(rows_waiting + rows) <= self._margin * self.p99_s

    def answered(self, seconds: float) -> None:
        """One answer took so long."""
        if len(self._latencies) < KEPT:
            self._latencies.append(seconds)

    def correct(self) -> None:
        """Once a second: let more wait when the goal was kept, less when it was not."""
        found, self._latencies = sorted(self._latencies), []
        if len(found) < 20:
            return
        if found[int(0.99 * (len(found) - 1))] > self.p99_s:
            self._margin = max(MARGIN_MIN, self._margin * MARGIN_CUT)
        else:
            self._margin = min(1.0, self._margin + MARGIN_STEP)
