"""Counters and histograms in one mapped page a process; any process renders the sum of all pages.

Rules of the room:
- A number is one 8-byte slot of a shared page: adding to it is one memory write, never a lock, a file or a message.
- Each process owns its page (`NAME.page`) and a directory of its slots (`NAME.json`); nobody else writes either.
- A page outlives its process, so counters survive a kill -9: the process that comes back continues its own page. A
  directory that cannot be read (a power loss tore it) begins anew, with an empty page: counters are no books.
- Gauges do not outlive it: a process holds a lock on its page while it lives, and of a page that nobody holds only
  counters and histograms are read.
- A disk without room costs numbers, never an answer: a page that cannot be had whole lives in memory alone, and a
  directory that cannot be written is written when the next series comes.
- Who claims labels gives them back with `release`: their series go, and others take their slots. The order keeps other
  processes from misreading: the directory without a series is written first, and only then are its slots free; they
  are emptied before the directory with the next series is written. A reader takes numbers only if the directory was
  the same before and after.
- Labels have a bound: when all but RESERVE slots are taken, series that nobody claims any more (of an earlier life of
  the page) go, and then a new labelled series is folded into the label values "other", for which the reserve is kept.
- A name that begins with "_" is for the processes of the service alone: it is summed as any other, and not rendered.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NotRequired, TypedDict, cast

import msgspec
import numpy as np

SLOTS = 1 << 16
RESERVE = 1 << 12
LOOKS_MAX = 100  # at a directory that changes while its page is read
SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    30,
    60,
)
_JOINED: dict[str, Callable[[tuple[float, float]], float]] = {"sum": sum, "max": max, "min": min}
Labels = Mapping[str, str]
Page = MutableSequence[float]
logger = logging.getLogger(__name__)


class Counter:
    """A number that only grows (`add`) or, as a gauge, is `set`."""

    __slots__ = ("_page", "_slot")

    def __init__(self, page: Page, slot: int) -> None:
        self._page, self._slot = page, slot

    def add(self, amount: float = 1.0) -> None:
        """One write to the page; not atomic between threads of one process."""
        self._page[self._slot] += amount

    def set(self, value: float) -> None:
        """What a gauge stands at now."""
        self._page[self._slot] = value

    @property
    def value(self) -> float:
        """As this process's page has it, the page's earlier lives included."""
        return float(self._page[self._slot])


class Histogram:
    """Counts in fixed buckets; `bounds` are inclusive upper edges in seconds, the last bucket has none."""

    __slots__ = ("_bounds", "_page", "_slot")

    def __init__(self, page: Page, slot: int, bounds: tuple[float, ...]) -> None:
        self._page, self._slot, self._bounds = page, slot, bounds

    def observe(self, value: float) -> None:
        """Count one value and add it to the sum; two writes to the page."""
        page, slot, edges = self._page, self._slot, self._bounds
        page[slot + bisect_left(edges, value)] += 1
        page[slot + len(edges) + 1] += value

    def observe_all(self, values: np.ndarray) -> None:
        """As `observe` of each of these, float64: a write to the page for each bucket that they fall into."""
        page, slot, edges = self._page, self._slot, self._bounds
        counts = np.bincount(np.searchsorted(edges, values))
        for bucket in np.flatnonzero(counts).tolist():
            page[slot + bucket] += int(counts[bucket])
        page[slot + len(edges) + 1] += float(values.sum())

    def add(self, bucket: int, amount: float = 1.0) -> None:
        """Add to the bucket of this number; one write to the page."""
        self._page[self._slot + bucket] += amount

    def quantile(self, q: float) -> float:
        """The q-quantile, interpolated within its bucket; 0.0 when nothing was observed."""
        counts = list(self._page[self._slot : self._slot + len(self._bounds) + 1])
        return quantile(self._bounds, counts, q)


def quantile(bounds: tuple[float, ...], counts: Sequence[float], q: float) -> float:
    """The q-quantile of bucket counts (one more than `bounds`), linear within the bucket; the last edge caps it."""
    left = q * sum(counts)
    if left <= 0:
        return 0.0
    low = 0.0
    for edge, count in zip(bounds, counts, strict=False):
        if count >= left:
            return low + (edge - low) * left / count
        left -= count
        low = edge
    return bounds[-1]


class Series(NamedTuple):
    """One series of one process: `values` are its slots, a number, or of a histogram the counts of its buckets and the
    sum."""

    name: str
    kind: str
    labels: dict[str, str]
    bounds: tuple[float, ...]
    values: list[float]


class Meter:
    """This process's page. Without a folder it lives in memory alone (tests, a single process). No two processes that
    run at once share a `name`."""

    def __init__(self, folder: Path | None = None, name: str = "main") -> None:
        self._folder, self._name = folder, name
        self._series: dict[str, dict[str, object]] = {}
        self._made: dict[str, Counter | Histogram] = {}
        self._claims: dict[_Names, int] = {}
        self._leaving: list[_Room] = []  # of series that are released, and that the directory may still have
        self._gaps: list[_Room] = []
        self._nowhere: Page | None = None  # where those count who still hold a released series
        self._folding = False
        self._held = False
        self._making = threading.RLock()
        self._page: Page
        self._file: BinaryIO | None = None  # open while this process lives: the lock on it says so
        self._unsaved = ""
        if folder is not None:
            try:
                self._map(folder, name)
                return
            except OSError as error:
                logger.error("the counters of %s are seen by no other process: %s/%s", name, folder, _why(error))
                self._folder = None
        self._page = _floats(bytearray(SLOTS * 8))
        self._gaps = _gaps(())

    @classmethod
    def reading(cls, folder: Path) -> Meter:
        """One that shows the pages of a folder and adds none."""
        made = cls()
        made._folder = folder
        return made

    @property
    def name(self) -> str:
        """Of this process's page."""
        return self._name

    def _map(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{name}.page").open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_SH)
        fd = self._file.fileno()
        os.ftruncate(fd, SLOTS * 8)
        if hasattr(os, "posix_fallocate"):  # a hole in the page, on a disk that is full by then, would be a SIGBUS
            os.posix_fallocate(fd, 0, SLOTS * 8)
        self._page = _floats(mmap.mmap(fd, SLOTS * 8))
        self._series = _directory(folder / f"{name}.json")
        self._gaps = _gaps(map(_room, self._series.values()))

    def counter(self, name: str, help: str, labels: Labels | None = None) -> Counter:
        """The series of this name and labels, made on first use. MemoryError when the page is full."""
        made = self._made.get(key := _key(name, labels))
        if made is None:
            made = self._made[key] = Counter(self._page, self._slot(key, name, help, "counter", labels, ()))
        assert isinstance(made, Counter)
        return made

    def gauge(
        self, name: str, help: str, labels: Labels | None = None, joined: Literal["sum", "max", "min"] = "sum"
    ) -> Counter:
        """As `counter`, for a number that is set. `joined`: what the numbers of several living processes make."""
        made = self._made.get(key := _key(name, labels))
        if made is None:
            made = self._made[key] = Counter(self._page, self._slot(key, name, help, "gauge", labels, (), joined))
        assert isinstance(made, Counter)
        return made

    def histogram(
        self, name: str, help: str, labels: Labels | None = None, bounds: tuple[float, ...] = SECONDS
    ) -> Histogram:
        """As `counter`, for a distribution; `bounds` are the upper edges of its buckets, ascending."""
        made = self._made.get(key := _key(name, labels))
        if made is None:
            slot = self._slot(key, name, help, "histogram", labels, bounds)
            made = self._made[key] = Histogram(self._page, slot, bounds)
        assert isinstance(made, Histogram)
        return made

    def _slot(
        self,
        key: str,
        name: str,
        help: str,
        kind: str,
        labels: Labels | None,
        bounds: tuple[float, ...],
        joined: str = "sum",
    ) -> int:
        with self._making:  # a loader's thread makes series, too
            known = self._series.get(key)
            if known is None or (known["kind"], known["bounds"]) != (kind, list(bounds)):  # new, or of an older release
                known = {"name": name, "help": help, "kind": kind, "labels": dict(labels or {}), "bounds": list(bounds)}
                if joined != "sum":
                    known["joined"] = joined
                at = self._free(_size(known), SLOTS - RESERVE if labels else SLOTS)
                other = dict.fromkeys(labels or {}, "other")
                if at is None and labels and other != labels:
                    self._fold(key)
                    return self._slot(_key(name, other), name, help, kind, other, bounds, joined)
                if at is None and (at := self._free(_size(known), SLOTS)) is None:
                    raise MemoryError(f"the meter page is full ({SLOTS} slots): {key} has no room")
                known["slot"] = at
                self._series[key] = known
                self._save()
            return int(str(known["slot"]))

    def _free(self, size: int, end: int) -> int | None:
        """Take empty slots before `end`, in the smallest gap that has so many; None when none has."""
        fits = [gap for gap in self._gaps if gap[0] + size <= min(gap[1], end)]
        if not fits and end < SLOTS and not self._folding and self._drop(self._stale()):
            return self._free(size, end)
        if not fits:
            return None
        gap = min(fits, key=lambda gap: min(gap[1], end) - gap[0])
        at, left = gap[0], (gap[0] + size, gap[1])
        self._gaps[self._gaps.index(gap) : self._gaps.index(gap) + 1] = [left] if left[0] < left[1] else []
        for slot in range(at, at + size):
            self._page[slot] = 0.0
        return at

    def _fold(self, key: str) -> None:
        if not self._folding:
            self._folding = True
            logger.error(
                'the counters of %s have no room for %s: from now on new ones are counted under "other", and guards of '
                "new canaries see nothing; serve fewer models and versions at once",
                self._name,
                key,
            )

    def claim(self, labels: Labels) -> None:
        """The series of exactly these labels are in use, until `release` was called as often."""
        with self._making:
            names = frozenset(labels.items())
            self._claims[names] = self._claims.get(names, 0) + 1

    def release(self, labels: Labels) -> None:
        """Give up a claim; with the last one the series of exactly these labels go. Who still holds one may go on to
        count: it is counted nowhere. To be called by the thread that counts."""
        with self._making:
            names = frozenset(labels.items())
            left = self._claims.pop(names) - 1
            if left:
                self._claims[names] = left
            else:
                self._drop([key for key, spec in self._series.items() if _names(spec) == names])
                mine = _text(labels)
                for key in [key for key in self._made if key.endswith(mine)]:  # those that were folded
                    del self._made[key]

    def _stale(self) -> list[str]:
        """The series that nobody claims, although others with labels of the same names are claimed."""
        kinds = {_labelled(names) for names in self._claims}
        kept = {*self._claims, *(frozenset((name, "other") for name in kind) for kind in kinds)}
        named = ((key, _names(spec)) for key, spec in self._series.items())
        return [key for key, names in named if _labelled(names) in kinds and names not in kept]

    def _drop(self, keys: list[str]) -> bool:
        """Have series no more; whether there were any."""
        for key in keys:
            self._leaving.append(_room(self._series.pop(key)))
            if (made := self._made.pop(key, None)) is not None:
                if self._nowhere is None:
                    self._nowhere = _floats(bytearray(SLOTS * 8))
                made._page = self._nowhere
        if keys:
            self._folding = False
            self._publish()
        return bool(keys)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Save the directory once for all series that are made within, not once for each."""
        with self._making:
            self._held = True
            try:
                yield
            finally:
                self._held = False
                self._save()

    def _save(self) -> None:
        if not self._held:
            self._publish()

    def _publish(self) -> None:
        """Write the directory; from then on nobody reads the slots of released series."""
        if self._folder is not None and not self._written(self._folder):
            return
        if self._leaving:
            self._leaving = []
            self._gaps = _gaps(map(_room, self._series.values()))

    def _written(self, folder: Path) -> bool:
        part = folder / f"{self._name}.json.part"
        try:
            part.write_text(json.dumps(self._series))
            part.replace(folder / f"{self._name}.json")
        except OSError as error:
            if str(error) != self._unsaved:
                logger.error("new counters of %s are seen by no other process for now: %s", self._name, _why(error))
            self._unsaved = str(error)
            return False
        self._unsaved = ""
        return True

    def pages(self) -> Iterable[tuple[str, dict[str, dict[str, object]], Sequence[float]]]:
        """(name, directory, numbers) of every process that shares the folder, in order of their names; of one that has
        ended, without its gauges."""
        others = sorted(self._folder.glob("*.json"), key=lambda path: path.stem) if self._folder else []
        for directory in others:
            if directory.stem == self._name:
                continue
            page = directory.with_suffix(".page")
            try:
                alive, (series, numbers) = _held(page), _read(directory, page)
            except FileNotFoundError:  # a folder that is being removed, or was copied in part
                continue
            if not alive:
                series = {key: spec for key, spec in series.items() if spec["kind"] != "gauge"}
            yield directory.stem, series, numbers
        with self._making:
            series, numbers = dict(self._series), _floats(bytes(cast(memoryview, self._page)))
        yield self._name, series, numbers

    def by_process(self, names: Container[str]) -> Iterator[tuple[str, list[Series]]]:
        """The series of these names as each process has them, (process, series), this one's own last."""
        for name, directory, page in self.pages():
            found = []
            for spec in directory.values():
                if spec["name"] in names:
                    at = int(str(spec["slot"]))
                    labels, bounds = cast("dict[str, str]", spec["labels"]), cast("list[float]", spec["bounds"])
                    values = [float(page[i]) for i in range(at, at + _size(spec))]
                    found.append(Series(str(spec["name"]), str(spec["kind"]), labels, tuple(bounds), values))
            yield name, found

    def total(self) -> dict[str, dict[str, object]]:
        """Every series summed over the processes: key -> {name, help, kind, labels, bounds, values}.

        A gauge joins the living processes as it was declared. Of histograms whose bounds differ between releases, the
        one that comes last speaks.
        """
        total: dict[str, dict[str, object]] = {}
        for _, series, page in self.pages():
            for key, spec in series.items():
                at = int(str(spec["slot"]))
                values = [float(page[i]) for i in range(at, at + _size(spec))]
                seen = total.get(key)
                if seen is None or spec["bounds"] != seen["bounds"]:
                    total[key] = {**spec, "values": values}
                else:
                    join = _JOINED[str(spec.get("joined", "sum"))]
                    seen["values"] = [join(pair) for pair in zip(_numbers(seen), values, strict=True)]
        return total

    @property
    def kept(self) -> bool:
        """Whether the numbers outlive this process."""
        return self._folder is not None

    def values(self, name: str, labels: Labels | None = None) -> list[float]:
        """One series summed over the processes, as its slots are: a number, or of a histogram the counts of its buckets
        and the sum. Empty when no process has it. May be called from any thread."""
        key, total = _key(name, labels), list[float]()
        for _, series, page in self.pages():
            if (spec := series.get(key)) is not None:
                at = int(str(spec["slot"]))
                found = [float(page[i]) for i in range(at, at + _size(spec))]
                total = found if len(total) != len(found) else [a + b for a, b in zip(total, found, strict=True)]
        return total

    def sum(self, name: str) -> float:
        """All series of this name together: counters and gauges; of a histogram, how many observations."""
        found = (spec for spec in self.total().values() if spec["name"] == name)
        return sum(_numbers(spec)[0] if spec["kind"] != "histogram" else sum(_numbers(spec)[:-1]) for spec in found)

    def quantile(self, name: str, q: float) -> float:
        """The q-quantile over every series and process of a histogram; 0.0 when nothing was observed."""
        found = [spec for spec in self.total().values() if spec["name"] == name and spec["kind"] == "histogram"]
        if not found:
            return 0.0
        bounds: list[float] = found[0]["bounds"]  # type: ignore[assignment]
        counts = [sum(column) for column in zip(*(_numbers(spec)[:-1] for spec in found), strict=True)]
        return quantile(tuple(bounds), counts, q)

    def render(self) -> str:
        """The Prometheus text format (version 0.0.4) of `total()`."""
        lines: list[str] = []
        named: set[str] = set()
        told = (spec for spec in self.total().values() if not str(spec["name"]).startswith("_"))
        for spec in sorted(told, key=lambda s: str(s["name"])):
            name, labels = str(spec["name"]), dict(spec["labels"])  # type: ignore[call-overload]
            if name not in named:
                named.add(name)
                help = str(spec["help"]).replace("\\", r"\\").replace("\n", r"\n")
                lines += [f"# HELP {name} {help}", f"# TYPE {name} {spec['kind']}"]
            values = _numbers(spec)
            if spec["kind"] != "histogram":
                lines.append(f"{name}{_text(labels)} {_number(values[0])}")
                continue
            below = 0.0
            for edge, count in zip([*spec["bounds"], "+Inf"], values[:-1], strict=True):  # type: ignore[misc]
                below += count
                lines.append(f"{name}_bucket{_text({**labels, 'le': str(edge)})} {_number(below)}")
            lines.append(f"{name}_sum{_text(labels)} {_number(values[-1])}")
            lines.append(f"{name}_count{_text(labels)} {_number(below)}")
        return "\n".join(lines) + "\n"


def _floats(buffer: bytes | bytearray | mmap.mmap) -> Page:
    """The buffer as numbers: a memoryview of doubles, which the type checker does not know as a sequence of floats."""
    return cast(Page, memoryview(buffer).cast("d"))


def _read(directory: Path, page: Path) -> tuple[dict[str, dict[str, object]], Page]:
    """The series of another process and its numbers, which belong together; nothing when that cannot be had."""
    for _ in range(LOOKS_MAX):
        series, numbers = directory.read_bytes(), page.read_bytes()
        if directory.read_bytes() == series:
            return _decoded(series), _floats(numbers)
    return {}, _floats(b"")


def _directory(path: Path) -> dict[str, dict[str, object]]:
    try:
        return {key: dict(spec) for key, spec in _decoded(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}


@lru_cache(64)
def _decoded(text: bytes) -> dict[str, dict[str, object]]:
    try:
        found = msgspec.json.decode(text, type=dict[str, _Spec])
    except ValueError:
        return {}
    specs = cast("dict[str, dict[str, object]]", found)
    return specs if all(0 <= int(str(s["slot"])) <= SLOTS - _size(s) for s in specs.values()) else {}


class _Spec(TypedDict):
    """A series in a directory. One that is written otherwise is of another release."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: dict[str, str]
    bounds: list[float]
    slot: int
    joined: NotRequired[Literal["sum", "max", "min"]]


def _held(page: Path) -> bool:
    """Whether a process has this page for its own now. Two that ask at the same moment may take each other for it."""
    with page.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _why(error: OSError) -> str:
    return f"{error.filename or ''}: {error.strerror}"


def _number(value: float) -> str:
    """Every digit of it: a counter of seven digits still counts by one."""
    return str(int(value)) if value.is_integer() else repr(value)


def _numbers(spec: Mapping[str, object]) -> list[float]:
    return spec["values"]  # type: ignore[return-value]


def _size(spec: Mapping[str, object]) -> int:
    return len(spec["bounds"]) + 2 if spec["kind"] == "histogram" else 1  # type: ignore[arg-type]


_Names = frozenset[tuple[str, str]]  # the names and values of labels
_Room = tuple[int, int]  # the first slot, and the one after the last


def _names(spec: Mapping[str, object]) -> _Names:
    return frozenset(spec["labels"].items())  # type: ignore[attr-defined]


def _labelled(names: _Names) -> frozenset[str]:
    return frozenset(name for name, _ in names)


def _room(spec: Mapping[str, object]) -> _Room:
    at = int(str(spec["slot"]))
    return at, at + _size(spec)


def _gaps(taken: Iterable[_Room]) -> list[_Room]:
    """What is left of a page, in order."""
    gaps, at = [], 0
    for begin, end in (*sorted(taken), (SLOTS, SLOTS)):
        if begin > at:
            gaps.append((at, begin))
        at = max(at, end)
    return gaps


def _key(name: str, labels: Labels | None) -> str:
    return name + _text(labels or {})


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((k, str(v).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels.items())
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"
