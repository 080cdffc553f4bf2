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
- Labels have a bound: when all but RESERVE slots are taken, a new labelled series is folded into the label values
  "other", for which the reserve is kept.
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
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NotRequired, TypedDict, cast

import msgspec

SLOTS = 1 << 16
RESERVE = 1 << 12
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


class Meter:
    """This process's page. Without a folder it lives in memory alone (tests, a single process). No two processes that
    run at once share a `name`."""

    def __init__(self, folder: Path | None = None, name: str = "main") -> None:
        self._folder, self._name = folder, name
        self._series: dict[str, dict[str, object]] = {}
        self._made: dict[str, Counter | Histogram] = {}
        self._used = 0
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
        self._used = max((int(str(s["slot"])) + _size(s) for s in self._series.values()), default=0)
        if not self._series:  # nothing of a directory that was lost
            for slot in range(SLOTS):
                self._page[slot] = 0.0

    def counter(self, name: str, help: str, labels: Labels | None = None) -> Counter:
        """The series of this name and labels, made on first use. MemoryError when the page is full."""
        made = self._made.get(key := _key(name, labels))
        if made is None:
            made = self._made[key] = Counter(self._page, self._slot(key, name, help, "counter", labels, ()))
        assert isinstance(made, Counter)
        return made

    def gauge(
        self, name: str, help: str, labels: Labels | None = None, joined: Literal["sum", "max"] = "sum"
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
                used = self._used + _size(known)
                other = dict.fromkeys(labels or {}, "other")
                if used > SLOTS - RESERVE and labels and other != labels:
                    return self._slot(_key(name, other), name, help, kind, other, bounds, joined)
                if used > SLOTS:
                    raise MemoryError(f"the meter page is full ({SLOTS} slots): {key} has no room")
                known["slot"] = self._used
                self._used += _size(known)
                self._series[key] = known
                self._save()
            return int(str(known["slot"]))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Save the directory once for all series that are made within, not once for each."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._save()

    def _save(self) -> None:
        if self._folder is None or self._held:
            return
        part = self._folder / f"{self._name}.json.part"
        try:
            part.write_text(json.dumps(self._series))
            part.replace(self._folder / f"{self._name}.json")
        except OSError as error:
            if str(error) != self._unsaved:
                logger.error("new counters of %s are seen by no other process for now: %s", self._name, _why(error))
            self._unsaved = str(error)
        else:
            self._unsaved = ""

    def pages(self) -> Iterable[tuple[dict[str, dict[str, object]], Sequence[float]]]:
        """(directory, numbers) of every process that shares the folder, in order of their names; of one that has
        ended, without its gauges."""
        if self._folder is None:
            yield dict(self._series), self._page
            return
        for directory in sorted(self._folder.glob("*.json"), key=lambda path: path.stem):
            if directory.stem == self._name:
                continue
            series, page = _directory(directory), directory.with_suffix(".page")
            try:
                if not _held(page):
                    series = {key: spec for key, spec in series.items() if spec["kind"] != "gauge"}
                yield series, _floats(page.read_bytes())
            except FileNotFoundError:  # a folder that is being removed, or was copied in part
                continue
        yield dict(self._series), self._page

    def total(self) -> dict[str, dict[str, object]]:
        """Every series summed over the processes: key -> {name, help, kind, labels, bounds, values}.

        A gauge joins the living processes as it was declared. Of histograms whose bounds differ between releases, the
        one that comes last speaks.
        """
        total: dict[str, dict[str, object]] = {}
        for series, page in self.pages():
            for key, spec in series.items():
                at = int(str(spec["slot"]))
                values = [float(page[i]) for i in range(at, at + _size(spec))]
                seen = total.get(key)
                if seen is None or spec["bounds"] != seen["bounds"]:
                    total[key] = {**spec, "values": values}
                elif spec.get("joined") == "max":
                    seen["values"] = [max(a, b) for a, b in zip(seen["values"], values, strict=True)]  # type: ignore[call-overload]
                else:
                    seen["values"] = [a + b for a, b in zip(seen["values"], values, strict=True)]  # type: ignore[call-overload]
        return total

    @property
    def kept(self) -> bool:
        """Whether the numbers outlive this process."""
        return self._folder is not None

    def values(self, name: str, labels: Labels | None = None) -> list[float]:
        """One series summed over the processes, as its slots are: a number, or of a histogram the counts of its buckets
        and the sum. Empty when no process has it. May be called from any thread."""
        key, total = _key(name, labels), list[float]()
        for series, page in self.pages():
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


def _directory(path: Path) -> dict[str, dict[str, object]]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, _Spec])
    except (FileNotFoundError, ValueError):
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
    joined: NotRequired[str]


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


def _key(name: str, labels: Labels | None) -> str:
    return name + _text(labels or {})


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((k, str(v).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels.items())
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"
