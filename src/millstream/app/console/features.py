"""What the console's page Features shows: counters of the feature sets, what monitors say of them, and the last time
that what was served was compared with the log.

Rules of the room:
- Nothing here runs the file of definitions: it is a program of the user's. Sets and columns are those that the roles
  count.
- The comparison reads the whole log, so it is a process of its own, `millstream features verify`, one at a time, ended
  after `VERIFY_S_MAX` and when the console ends.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Collection, Mapping

import msgspec

from millstream.app.console.counted import Counted
from millstream.app.console.tail import Tail
from millstream.app.installation import Installation
from millstream.console.studies import FeaturesNow, SetNow, Skew, Spread
from millstream.errors import Corrupt
from millstream.meter import Meter
from millstream.stream import decode
from millstream.types import Readings
from millstream.watch import reading

VERIFY_S_MAX = 600.0
SAID_MAX = 600
ODD_MAX = 8
READ_BACK = 2 * reading.KEYED
DRIFT, DEAD = "feature_psi", "feature_dead"
"""What monitors read of a feature: how far it surely moved from its past, and whether it has one value, or none."""


class FeaturesWatch:
    """The feature sets of an installation; may be asked from any thread."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._skew = Skew(state="never")
        self._running: subprocess.Popen[str] | None = None
        self._readings, self._reader = Tail(at.log, "readings", READ_BACK), reading.Reader()
        self._drift: dict[tuple[str, str], float] = {}
        self._dead: set[tuple[str, str]] = set()

    def features(self) -> FeaturesNow:
        """The sets as they are counted now."""
        counted = Counted(Meter.reading(self._at.folder / "state" / "meters"))
        with self._lock:
            self._follow()
            drift, dead, skew = self._drift, self._dead, self._skew
        names = counted.values("millstream_feature_events_total", "set")
        return FeaturesNow(sets=[self._set(counted, name, drift, dead) for name in names], skew=skew)

    def compare(self) -> None:
        """Begin the comparison in a thread; nothing where one goes on."""
        with self._lock:
            if self._skew.state == "running":
                return
            self._skew = Skew(state="running", at=self._at.clock.now())
        threading.Thread(target=self._compare, name="millstream-compare", daemon=True).start()

    def close(self) -> None:
        """End what goes on."""
        if (running := self._running) is not None:
            running.kill()

    def _compare(self) -> None:
        at, began = self._at.clock.now(), self._at.clock.monotonic()
        file = self._at.folder / "millstream.toml"
        command = [sys.executable, "-m", "millstream", "features", "verify", "-c", str(file), "--json"]
        pipe = subprocess.PIPE
        try:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as running:
                self._running = running
                try:
                    out, said = running.communicate(timeout=VERIFY_S_MAX)
                except subprocess.TimeoutExpired:
                    running.kill()
                    out, said = "", f"not done within {VERIFY_S_MAX:.0f} s: run `millstream features verify`"
                finally:
                    self._running = None
        except OSError as error:  # no room for a process
            out, said = "", f"cannot begin: {error}"
        found = _read(out, said)
        took = self._at.clock.monotonic() - began
        with self._lock:
            self._skew = msgspec.structs.replace(found, at=at, took=round(took, 2))

    def _follow(self) -> None:
        """What monitors said last of how far features have moved."""
        for _, event in self._readings.new(decode):
            if not isinstance(event, Readings):
                continue
            try:
                values = self._reader.read(event) or {}
            except Corrupt:
                continue
            if not any(key.quantity in (DRIFT, DEAD) for key in values):
                continue
            self._drift, self._dead = {}, set()
            for key, value in values.items():
                one = key.get("set"), key.get("feature")
                if key.quantity == DRIFT:  # beside an hour ago, and a day: whichever is further
                    self._drift[one] = max(round(value, 4), self._drift.get(one, 0.0))
                elif key.quantity == DEAD and value:
                    self._dead.add(one)

    def _set(
        self, counted: Counted, name: str, drift: Mapping[tuple[str, str], float], dead: Collection[tuple[str, str]]
    ) -> SetNow:
        mine = {"set": name}

        def count(metric: str) -> int:
            return int(counted.sum(f"millstream_feature_{metric}", mine))

        def column(feature: str) -> Spread:
            one = mine | {"feature": feature}
            lies = (counted.level("millstream_feature_quantile", one | {"q": q}) for q in ("0.1", "0.5", "0.9"))
            low, middle, high = lies
            return Spread(
                name=feature, missing=counted.level("millstream_feature_missing_share", one), low=low, middle=middle,
                high=high, drift=drift.get((name, feature)), dead=(name, feature) in dead,
            )  # fmt: skip

        age = counted.level("millstream_feature_age_seconds", mine)
        without = counted.by("millstream_feature_rankings_without_total", "cause", mine)
        shares = counted.by("millstream_feature_missing_share", "feature", mine)
        return SetNow(
            name=name,
            age=None if age is None else round(age, 1),
            stale_after=self._at.settings.feature_store.stale_s_max,
            events=count("events_total"),
            rows=count("rows_total"),
            reads=count("reads_total"),
            read_p50=counted.quantile("millstream_feature_read_seconds", 0.5, mine),
            read_p99=counted.quantile("millstream_feature_read_seconds", 0.99, mine),
            unknown=count("missing_total"),
            checked=count("rows_checked_total"),
            wrong=count("rows_wrong_total"),
            odd=count("values_odd_total"),
            without={cause: int(times) for cause, times in without.items()},
            columns=[column(feature) for feature in shares],
        )


class _Odd(msgspec.Struct):
    features: str
    column: str
    keys: dict[str, str]
    at: float
    read: float | None
    recomputed: float | None


class _Answer(msgspec.Struct):
    sound: bool
    reads: int
    values: dict[str, dict[str, int]]
    odd: list[_Odd] = []


def _read(out: str, said: str) -> Skew:
    """What the command printed, last line first."""
    lines = out.strip().splitlines()
    try:
        found = msgspec.json.decode(lines[-1] if lines else "", type=_Answer)
    except msgspec.MsgspecError:
        return Skew(state="failed", sound=False, said=said.strip()[-SAID_MAX:])
    odd = [
        f"{one.features}.{one.column} {' '.join(one.keys.values())}: {one.read} ≠ {one.recomputed}"
        for one in found.odd[:ODD_MAX]
    ]
    return Skew(state="done", reads=found.reads, sound=found.sound, values=found.values, odd=odd)
