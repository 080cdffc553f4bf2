"""What a call costs, and a goal instead of knobs: keep 99 of 100 answers under so many milliseconds.

Rules of the room:
- What a call costs is learnt from the calls themselves: a fixed part and a part a row, older calls fading.
- Two means, both stated: batches small enough that a call takes at most half of the goal, and refusing at once what
  would wait too long. Waiting for more rows is no third: on the machines measured it only costs time.
- The bound on waiting is corrected by what was reached: additive increase, multiplicative decrease (Chiu, Jain 1989).
"""

from __future__ import annotations

FADE = 0.98
FLOOR = 0.05  # of the mean cost a row: noise must not make rows look free
KEPT = 2048
MARGIN_MIN, MARGIN_STEP, MARGIN_CUT = 0.05, 0.02, 0.8
SHARE = 0.5


class Pace:
    """Seconds of a call by its rows: `fixed` + `row` a row, least squares over calls that fade."""

    def __init__(self) -> None:
        self._weight = self._rows = self._wall = self._square = self._product = 0.0
        self.fixed = self.row = self._largest = 0.0

    def ran(self, rows: int, wall_s: float) -> None:
        """A call has ended."""
        weight = self._weight = FADE * self._weight + 1.0
        x = self._rows = FADE * self._rows + rows
        y = self._wall = FADE * self._wall + wall_s
        xx = self._square = FADE * self._square + rows * rows
        xy = self._product = FADE * self._product + rows * wall_s
        spread = weight * xx - x * x
        # Calls of one size tell nothing of the parts: then every row is taken to cost its share.
        slope = (weight * xy - x * y) / spread if spread > 1e-3 * weight * xx else y / x
        self.row = min(max(slope, FLOOR * y / x), y / x)
        self.fixed = max(0.0, (y - self.row * x) / weight)
        self._largest = max(rows, FADE * self._largest)

    def within(self, seconds: float, least: int, most: int) -> int:
        """How many rows a call may have to take at most so long; at most double of what was seen of late."""
        most = min(most, max(least, int(2 * self._largest)))
        if self.row * most <= seconds - self.fixed:
            return most
        return int(min(max((seconds - self.fixed) / self.row, least), most)) if self.row else least

    def of(self, rows: int) -> float:
        """Seconds that a call of so many rows should take."""
        return self.fixed + self.row * rows


class Goal:
    """Of one version with `instances`: `takes(rows_waiting, rows)` before a request waits."""

    def __init__(self, p99_s: float, instances: int, pace: Pace) -> None:
        self.p99_s, self._instances, self._pace = p99_s, instances, pace
        self._margin = 0.7  # the part of the goal that a request may be expected to take
        self._latencies: list[float] = []

    def expected_s(self, rows: int, most: int) -> float:
        """Until a request is answered that would be the last of `rows` waiting, by calls of at most `most`: the call
        that has just begun, those before its own shared by the instances, and its own."""
        whole = self._pace.of(most)
        calls = -(-rows // most)
        return whole + max(0, calls - 1) * whole / self._instances + self._pace.of(min(rows, most))

    def takes(self, rows_waiting: int, rows: int, most: int) -> bool:
        """Whether a request may wait behind `rows_waiting`. When nothing waits it may: somebody has to be first."""
        return not rows_waiting or self.expected_s(rows_waiting + rows, most) <= self._margin * self.p99_s

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
